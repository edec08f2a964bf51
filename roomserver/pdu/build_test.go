package pdu

import (
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"math"
	"reflect"
	"strings"
	"testing"

	"github.com/myelin-im/myelin/internal/signing"
)

// proto returns what a message on top of two events is built from.
func proto(v *Version) *Proto {
	p := &Proto{
		RoomID: "!room:example.org", Sender: "@alice:example.org", Type: "m.room.message",
		Content: json.RawMessage(`{"msgtype": "m.text", "body": "hello"}`), Depth: 12, OriginServerTS: 1700000000000,
		PrevEvents: []Ref{{ID: "$Rqnc-F-dvnEYJTyHq_iKxU2bZ1CI92-kuZq3a5lr5Zg"}},
		AuthEvents: []Ref{{ID: "$X7GhHPJbkwbcpqpGqyjq1n4lVjDdYmZMXSCaf3ZSLEw"}, {ID: "$accqGxfvhBvMP4Sf6P7t3WgnaJK6UbonO2ZmwqSE5Sg"}},
	}
	if v.EventFormat == 1 {
		const hash = "5jM4wQpv6lnBo7CLIghJuHdW+s2CMBJPUOGOC89ncos"
		p.PrevEvents = []Ref{{"$prev:example.org", hash}}
		p.AuthEvents = []Ref{{"$one:example.org", hash}, {"$two:example.org", hash}}
	}
	if v.RoomIDIsCreateHash {
		p.RoomID = "!mauT12AzsoqxV7Abvy_ApA-HNPK1LcT4GbP70_AOPyQ"
	}
	return p
}

func build(t testing.TB, v *Version, p *Proto) *Event {
	t.Helper()
	e, err := v.Build(p, "example.org", "ed25519:1", testKey(t))
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestBuild(t *testing.T) {
	key := ""
	eachVersion(t, func(t *testing.T, n int, v *Version) {
		for _, change := range []func(*Proto){
			func(*Proto) {},
			func(p *Proto) { p.StateKey, p.Type = &key, "m.room.name" },
			func(p *Proto) { p.Type, p.Redacts = TypeRedaction, p.PrevEvents[0].ID },
			func(p *Proto) { p.PrevEvents, p.AuthEvents = nil, nil },
			func(p *Proto) { p.Content = json.RawMessage(`{"z":{"y":"\u00e9","x":[1,true]},"a":"\n\u0000"}`) },
			func(p *Proto) { p.OriginServerTS, p.Depth = -5, MaxDepth },
		} {
			p := proto(v)
			change(p)
			e := build(t, v, p)
			event := naiveDecode(t, e.JSON())
			if want := naiveCanonical(event); string(e.JSON()) != want {
				t.Fatalf("%s is not canonical", e.JSON())
			}
			if e.ID != naiveID(n, event) || event["hashes"].(object)["sha256"] != naiveContentHash(event) {
				t.Errorf("wrong hashes: %s %s", e.ID, e.JSON())
			}
			parsed, err := Parse(v, e.JSON())
			if err != nil || !reflect.DeepEqual(parsed, e) {
				t.Errorf("parsed %+v, %v; want %+v", parsed, err, e)
			}
			if err := e.VerifySignature("example.org", "ed25519:1", publicKey(testKey(t))); err != nil {
				t.Error(err)
			}
			if e.Redacts() != p.Redacts || e.Sender != p.Sender || e.Type != p.Type || e.Depth != p.Depth {
				t.Errorf("built %+v from %+v", e, p)
			}
		}
	})
}

func TestBuildCreateV12(t *testing.T) {
	v, key := version(t, "12"), ""
	p := &Proto{Sender: "@alice:example.org", Type: TypeCreate, StateKey: &key, Content: json.RawMessage(`{"room_version":"12"}`), Depth: 1}
	e := build(t, v, p)
	if e.RoomID != "!"+e.ID[1:] || strings.Contains(string(e.JSON()), "room_id") {
		t.Errorf("%s %s", e.RoomID, e.JSON())
	}
	p.RoomID = e.RoomID
	if _, err := v.Build(p, "example.org", "ed25519:1", testKey(t)); !errors.Is(err, ErrFormat) {
		t.Errorf("create event with room ID: %v", err)
	}
	p.Type = "m.room.message"
	p.RoomID = ""
	if _, err := v.Build(p, "example.org", "ed25519:1", testKey(t)); !errors.Is(err, ErrFormat) {
		t.Errorf("message without room ID: %v", err)
	}
}

func TestBuildEventID1(t *testing.T) {
	v := version(t, "1")
	a, b := build(t, v, proto(v)), build(t, v, proto(v))
	if a.ID == b.ID || !strings.HasPrefix(a.ID, "$") || !strings.HasSuffix(a.ID, ":example.org") {
		t.Errorf("chosen IDs %s, %s", a.ID, b.ID)
	}
}

func TestBuildErrors(t *testing.T) {
	v := version(t, "11")
	long := strings.Repeat("x", 256)
	for _, c := range []struct {
		name   string
		change func(*Proto)
		want   error
	}{
		{"content no JSON", func(p *Proto) { p.Content = json.RawMessage(`{`) }, ErrBadJSON},
		{"no content", func(p *Proto) { p.Content = nil }, ErrBadJSON},
		{"content no object", func(p *Proto) { p.Content = json.RawMessage(`[]`) }, ErrFormat},
		{"fraction", func(p *Proto) { p.Content = json.RawMessage(`{"a":1.5}`) }, ErrBadJSON},
		{"lone surrogate", func(p *Proto) { p.Content = json.RawMessage(`{"a":"\ud800"}`) }, ErrBadJSON},
		{"type no UTF-8", func(p *Proto) { p.Type = "\xff" }, ErrBadJSON},
		{"state key no UTF-8", func(p *Proto) { k := "\xff"; p.StateKey = &k }, ErrBadJSON},
		{"redacts no UTF-8", func(p *Proto) { p.Redacts = "\xff" }, ErrBadJSON},
		{"reference no UTF-8", func(p *Proto) { p.PrevEvents[0].ID = "$\xff" }, ErrBadJSON},
		{"large", func(p *Proto) { p.Content = json.RawMessage(`{"a":"` + strings.Repeat("x", MaxSize) + `"}`) }, ErrTooLarge},
		{"long type", func(p *Proto) { p.Type = long }, ErrTooLarge},
		{"long state key", func(p *Proto) { p.StateKey = &long }, ErrTooLarge},
		{"long sender", func(p *Proto) { p.Sender = "@" + long + ":example.org" }, ErrTooLarge},
		{"no sender", func(p *Proto) { p.Sender = "" }, ErrFormat},
		{"no room", func(p *Proto) { p.RoomID = "" }, ErrFormat},
		{"negative depth", func(p *Proto) { p.Depth = -1 }, ErrFormat},
		{"large depth", func(p *Proto) { p.Depth = math.MaxInt64 }, ErrBadJSON},
		{"large time", func(p *Proto) { p.OriginServerTS = MaxDepth + 1 }, ErrBadJSON},
		{"many parents", func(p *Proto) { p.PrevEvents = make([]Ref, 21) }, ErrFormat},
		{"malformed parent", func(p *Proto) { p.PrevEvents[0].ID = "x" }, ErrFormat},
	} {
		p := proto(v)
		c.change(p)
		if e, err := v.Build(p, "example.org", "ed25519:1", testKey(t)); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, %v; want %v", c.name, e != nil, err, c.want)
		}
	}
	// Older rooms hold fields of more bytes, but nobody makes new ones.
	key := strings.Repeat("é", 200)
	p := proto(version(t, "6"))
	p.StateKey = &key
	if _, err := version(t, "6").Build(p, "example.org", "ed25519:1", testKey(t)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("400 bytes in version 6: %v", err)
	}
}

func TestTemplate(t *testing.T) {
	key := "@alice:example.org"
	eachVersion(t, func(t *testing.T, n int, v *Version) {
		p := proto(v)
		p.Type, p.StateKey, p.Content = TypeMember, &key, json.RawMessage(`{"membership":"join"}`)
		raw, err := v.Template(p)
		if err != nil {
			t.Fatal(err)
		}
		event := naiveDecode(t, raw)
		for _, absent := range []string{"event_id", "hashes", "signatures"} {
			if _, ok := event[absent]; ok {
				t.Errorf("the template has %s", absent)
			}
		}
		got, err := ParseTemplate(v, raw)
		if err != nil || !reflect.DeepEqual(got, p) {
			t.Errorf("parsed %+v, %v; want %+v", got, err, p)
		}
		if _, err := v.Build(got, "example.org", "ed25519:1", testKey(t)); err != nil {
			t.Error(err)
		}
	})
}

func TestParseTemplate(t *testing.T) {
	v := version(t, "10")
	minimal := `{"room_id":"!r:s","sender":"@u:s","type":"t","content":{},"prev_events":[],"auth_events":[]}`
	if p, err := ParseTemplate(v, []byte(minimal)); err != nil || p.Depth != 0 || p.OriginServerTS != 0 || p.StateKey != nil {
		t.Errorf("%+v, %v", p, err)
	}
	for raw, want := range map[string]error{
		``:   ErrBadJSON,
		`{}`: ErrFormat,
		`[]`: ErrFormat,
		strings.Replace(minimal, `"content":{}`, `"content":1`, 1):         ErrFormat,
		strings.Replace(minimal, `"content":{}`, `"content":{"a":1.5}`, 1): ErrBadJSON,
		strings.Replace(minimal, `"auth_events":[]`, `"depth":"x"`, 1):     ErrFormat,
		strings.Replace(minimal, `[]`, `[1]`, 1):                           ErrFormat,
		minimal + strings.Repeat(" ", maxRawSize):                          ErrTooLarge,
	} {
		if _, err := ParseTemplate(v, []byte(raw)); !errors.Is(err, want) {
			t.Errorf("%.100s: %v, want %v", raw, err, want)
		}
	}
}

func TestSign(t *testing.T) {
	eachVersion(t, func(t *testing.T, n int, v *Version) {
		e := build(t, v, proto(v))
		second := ed25519.NewKeyFromSeed(make([]byte, 32))
		signed, err := e.Sign("a.example", "ed25519:x", second)
		if err != nil {
			t.Fatal(err)
		}
		if signed.ID != e.ID || signed.RoomID != e.RoomID || len(e.Signatures("")) != 1 || len(signed.Signatures("")) != 2 {
			t.Errorf("signed %s", signed.JSON())
		}
		if err := signed.VerifySignature("a.example", "ed25519:x", publicKey(second)); err != nil {
			t.Error(err)
		}
		if err := signed.VerifySignature("example.org", "ed25519:1", publicKey(testKey(t))); err != nil {
			t.Error(err)
		}
		if err := signed.VerifySignature("a.example", "ed25519:1", publicKey(second)); !errors.Is(err, signing.ErrMissing) {
			t.Errorf("unknown key: %v", err)
		}
		if err := signed.VerifySignature("a.example", "ed25519:x", publicKey(testKey(t))); !errors.Is(err, signing.ErrInvalid) {
			t.Errorf("wrong key: %v", err)
		}
		parsed, err := Parse(v, signed.JSON())
		if err != nil || !reflect.DeepEqual(parsed, signed) {
			t.Errorf("parsed %v, %v", parsed, err)
		}
		if got := string(e.SigningBytes()); got != naiveCanonical(naiveWithout(naiveRedact(n, naiveDecode(t, e.JSON())), "signatures")) {
			t.Errorf("signing bytes %s", got)
		}
	})
}

func TestAddSignatureTooLarge(t *testing.T) {
	v := version(t, "11")
	p := proto(v)
	p.Content = json.RawMessage(`{"a":"` + strings.Repeat("x", MaxSize-800) + `"}`)
	e := build(t, v, p)
	if _, err := e.AddSignature("a.example", "ed25519:1", strings.Repeat("x", 900)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("%v", err)
	}
}

func TestRequiredSigners(t *testing.T) {
	type change = func(object)
	member := func(content object) change {
		return func(o object) { o["type"], o["state_key"], o["content"] = TypeMember, "@bob:b.example", content }
	}
	for _, c := range []struct {
		name        string
		change      change
		want        []string
		first, last int
	}{
		{"message", func(object) {}, []string{"example.org"}, 1, 12},
		{"other event ID", func(o object) { o["event_id"] = "$x:c.example" }, []string{"example.org", "c.example"}, 1, 2},
		{"event_id without meaning", func(o object) { o["event_id"] = "$x:c.example" }, []string{"example.org"}, 3, 12},
		{"invite", member(object{"membership": "invite"}), []string{"example.org"}, 1, 12},
		{"third-party invite", member(object{"membership": "invite", "third_party_invite": object{}}), []string{}, 3, 12},
		{"third-party invite", member(object{"membership": "invite", "third_party_invite": object{}}), []string{"example.org"}, 1, 2},
		{"join with leftover invite", member(object{"membership": "join", "third_party_invite": object{}}), []string{"example.org"}, 1, 12},
		{"restricted join", member(object{"membership": "join", "join_authorised_via_users_server": "@c:c.example:8448"}), []string{"example.org", "c.example:8448"}, 8, 12},
		{"restricted join", member(object{"membership": "join", "join_authorised_via_users_server": "@c:c.example"}), []string{"example.org"}, 1, 7},
		{"restricted join of one server", member(object{"membership": "join", "join_authorised_via_users_server": "@c:example.org"}), []string{"example.org"}, 8, 12},
		{"malformed authorising user", member(object{"membership": "join", "join_authorised_via_users_server": object{}}), []string{"example.org", ""}, 8, 12},
		{"message with that key", func(o object) { o["content"] = object{"join_authorised_via_users_server": "@c:c.example"} }, []string{"example.org"}, 8, 12},
	} {
		for n := c.first; n <= c.last; n++ {
			event := sample(n)
			c.change(event)
			e, err := Parse(Versions()[n-1], seal(event))
			if err != nil {
				t.Fatal(err)
			}
			if got := e.RequiredSigners(); !reflect.DeepEqual(got, c.want) {
				t.Errorf("version %d, %s: %q, want %q", n, c.name, got, c.want)
			}
		}
	}
}
