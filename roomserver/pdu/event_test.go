package pdu

import (
	"reflect"
	"strings"
	"sync"
	"testing"
)

// parse parses a valid event of version n.
func parse(t testing.TB, n int, change func(object)) *Event {
	t.Helper()
	event := sample(n)
	change(event)
	e, err := Parse(Versions()[n-1], seal(event))
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestMembership(t *testing.T) {
	member := func(o object) {
		o["type"], o["state_key"], o["content"] = TypeMember, "@a:b", object{"membership": "kn\nock"}
	}
	if got := parse(t, 10, member).Membership(); got != "kn\nock" {
		t.Errorf("membership %q", got)
	}
	if got := parse(t, 10, func(o object) { member(o); delete(o, "state_key") }).Membership(); got != "" {
		t.Errorf("membership of a message: %q", got)
	}
	if got := parse(t, 10, func(o object) { member(o); o["type"] = "x" }).Membership(); got != "" {
		t.Errorf("membership of another type: %q", got)
	}
	if got := parse(t, 10, func(o object) { member(o); o["content"] = object{"membership": true} }).Membership(); got != "" {
		t.Errorf("membership that is no string: %q", got)
	}
}

func TestContentViews(t *testing.T) {
	e := parse(t, 10, func(o object) {
		o["content"] = object{"join_rule": "invite", "n": nil, "join_authorised_via_users_server": "@a:b", "o": object{"x": "y"}}
	})
	if e.JoinRule() != "invite" || string(e.ContentField("o")) != `{"x":"y"}` || e.ContentField("x") != nil {
		t.Errorf("content %s", e.Content())
	}
	if s, ok := e.ContentString("n"); s != "" || ok {
		t.Errorf("null as a string: %q, %v", s, ok)
	}
	if user, ok := e.AuthorisedVia(); user != "@a:b" || !ok {
		t.Errorf("authorised via %q, %v", user, ok)
	}
	if user, ok := parse(t, 10, func(object) {}).AuthorisedVia(); user != "" || ok {
		t.Errorf("authorised via %q, %v", user, ok)
	}
}

func TestIs(t *testing.T) {
	e := parse(t, 10, func(o object) { o["state_key"] = "" })
	if !e.Is("m.room.message", "") || e.Is("m.room.message", "x") || e.Is("x", "") {
		t.Error("state event is not what it is")
	}
	if parse(t, 10, func(object) {}).Is("m.room.message", "") {
		t.Error("message is state")
	}
}

func TestCreators(t *testing.T) {
	content := object{"creator": "@c:d", "additional_creators": []any{"@e:f", nil, "@g:h"}}
	for n := 1; n <= 12; n++ {
		want := []string{"@c:d"}
		if n >= 11 {
			want = []string{"@alice:example.org"}
		}
		if n == 12 {
			want = append(want, "@e:f", "@g:h")
		}
		e := parse(t, n, func(o object) {
			o["type"], o["state_key"], o["content"] = TypeCreate, "", content
			if n == 12 {
				delete(o, "room_id")
			}
		})
		if got := e.Creators(); !reflect.DeepEqual(got, want) {
			t.Errorf("version %d: %q, want %q", n, got, want)
		}
	}
}

func TestRedacts(t *testing.T) {
	eachVersion(t, func(t *testing.T, n int, v *Version) {
		e := parse(t, n, func(o object) {
			o["type"], o["redacts"], o["content"] = TypeRedaction, "$top", object{"redacts": "$content"}
		})
		want := "$top"
		if n >= 11 {
			want = "$content"
		}
		if e.Redacts() != want {
			t.Errorf("redacts %s, want %s", e.Redacts(), want)
		}
		if e := parse(t, n, func(o object) { o["redacts"], o["content"] = "$top", object{"redacts": "$content"} }); e.Redacts() != "" {
			t.Errorf("a message redacts %s", e.Redacts())
		}
	})
}

func TestRef(t *testing.T) {
	eachVersion(t, func(t *testing.T, n int, v *Version) {
		e := parse(t, n, func(object) {})
		ref := e.Ref()
		if ref.ID != e.ID || (ref.SHA256 != "") != (n <= 2) {
			t.Errorf("ref %+v", ref)
		}
		// The hash is that of which later versions make the ID.
		if n <= 2 && "$"+ref.SHA256 != naiveID(3, naiveDecode(t, e.JSON())) {
			t.Errorf("reference hash %s", ref.SHA256)
		}
	})
}

func TestCached(t *testing.T) {
	e := parse(t, 10, func(object) {})
	var wait sync.WaitGroup
	values := make([]any, 8)
	for i := range values {
		wait.Go(func() { values[i] = e.Cached(func(e *Event) any { return &i }) })
	}
	wait.Wait()
	for _, value := range values {
		if value != values[0] {
			t.Error("callers got different values")
		}
	}
	if e.Cached(func(*Event) any { t.Error("built again"); return nil }) != values[0] {
		t.Error("another value later")
	}
}

// spec: rooms/v11 "Moving the redacts property"
func TestAppendClient(t *testing.T) {
	const tail = `"origin_server_ts":1700000000000,`
	for _, c := range []struct {
		name        string
		change      func(object)
		want        string // with ID for the event ID
		first, last int
	}{
		{
			"message", func(object) {},
			`{"content":{"body":"hello","msgtype":"m.text"},"event_id":"ID",` + tail + `"sender":"@alice:example.org","type":"m.room.message"`, 1, 12,
		},
		{
			"state", func(o object) { o["type"], o["state_key"], o["origin"], o["unknown"] = "a\"", "\n", "x", "y" },
			`{"content":{"body":"hello","msgtype":"m.text"},"event_id":"ID",` + tail + `"sender":"@alice:example.org","state_key":"\n","type":"a\""`, 1, 12,
		},
		{
			"redaction", func(o object) {
				o["type"], o["redacts"], o["content"] = TypeRedaction, "$x", object{"reason": "y", "z": nil}
			},
			`{"content":{"reason":"y","redacts":"$x","z":null},"event_id":"ID",` + tail + `"redacts":"$x","sender":"@alice:example.org","type":"m.room.redaction"`, 1, 10,
		},
		{
			"redaction that names two targets", func(o object) {
				o["type"], o["redacts"], o["content"] = TypeRedaction, "$x", object{"redacts": "$evil"}
			},
			`{"content":{"redacts":"$x"},"event_id":"ID",` + tail + `"redacts":"$x","sender":"@alice:example.org","type":"m.room.redaction"`, 1, 10,
		},
		{
			"redaction", func(o object) {
				o["type"], o["redacts"], o["content"] = TypeRedaction, "$evil", object{"redacts": "$x"}
			},
			`{"content":{"redacts":"$x"},"event_id":"ID",` + tail + `"redacts":"$x","sender":"@alice:example.org","type":"m.room.redaction"`, 11, 12,
		},
		{
			"redaction of nothing", func(o object) { o["type"], o["content"] = TypeRedaction, object{} },
			`{"content":{},"event_id":"ID",` + tail + `"sender":"@alice:example.org","type":"m.room.redaction"`, 1, 12,
		},
	} {
		for n := c.first; n <= c.last; n++ {
			e := parse(t, n, c.change)
			if got, want := string(e.AppendClient(nil)), strings.Replace(c.want, "ID", e.ID, 1); got != want {
				t.Errorf("version %d, %s: %s, want %s", n, c.name, got, want)
			}
		}
	}
}

func TestAppendStripped(t *testing.T) {
	e := parse(t, 10, func(o object) { o["type"], o["state_key"], o["content"] = "m.room.name", "", object{"name": "x"} })
	const want = `x{"content":{"name":"x"},"sender":"@alice:example.org","state_key":"","type":"m.room.name"}`
	if got := string(e.AppendStripped([]byte("x"))); got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

func TestServerNames(t *testing.T) {
	// spec: appendices v1.19 "Server Name"
	for _, name := range []string{
		"matrix.org", "matrix.org:8888", "1.2.3.4", "1.2.3.4:1234", "[1234:5678::abcd]", "[1234:5678::abcd]:5678", "localhost", "a-b.C", "[::]", strings.Repeat("a", 255),
	} {
		if !ValidServerName(name) {
			t.Errorf("%q is refused", name)
		}
	}
	for _, name := range []string{
		"", ":1", "a:", "a:x", "a:123456", "a:1:2", "a b", "a_b", "ä", "a/b", "[::", "[]", "[:]", "[::]x", "[::]:", "[g::]", "a\x00", strings.Repeat("a", 256),
	} {
		if ValidServerName(name) {
			t.Errorf("%q is accepted", name)
		}
	}
}

func TestServerOf(t *testing.T) {
	for id, want := range map[string]string{"@a:b": "b", "@a:b:1": "b:1", "@a:[::1]:1": "[::1]:1", "@a": "", "": "", "!hash": ""} {
		if got := ServerOf(id); got != want {
			t.Errorf("ServerOf(%s) = %s, want %s", id, got, want)
		}
	}
}
