package pdu

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/myelin-im/myelin/internal/canonicaljson"
	"github.com/myelin-im/myelin/internal/signing"
)

func TestParse(t *testing.T) {
	eachVersion(t, func(t *testing.T, n int, v *Version) {
		event := sample(n)
		event["type"], event["state_key"] = "m.room.topic", "a\nb"
		raw := seal(event)
		e, err := Parse(v, raw)
		if err != nil {
			t.Fatal(err)
		}
		if e.ID != naiveID(n, naiveDecode(t, raw)) || e.RoomID != event["room_id"] || e.Sender != "@alice:example.org" || e.Type != "m.room.topic" ||
			!e.IsState() || *e.StateKey != "a\nb" || e.Depth != 12 || e.OriginServerTS != 1700000000000 || e.Redacted || e.Version() != v {
			t.Errorf("parsed %+v", e)
		}
		if string(e.JSON()) != string(raw) || string(e.Content()) != `{"body":"hello","msgtype":"m.text"}` {
			t.Errorf("JSON %s, content %s", e.JSON(), e.Content())
		}
		if len(e.PrevEventIDs()) != 1 || len(e.AuthEventIDs()) != 2 || e.SenderServer() != "example.org" {
			t.Errorf("references %v, %v", e.PrevEventIDs(), e.AuthEventIDs())
		}
		stored, err := FromStore(v, raw, e.ID, false)
		if err != nil || !reflect.DeepEqual(stored, e) {
			t.Errorf("from the store: %+v, %v; want %+v", stored, err, e)
		}
	})
}

func TestParseNormalises(t *testing.T) {
	v := version(t, "10")
	event := sample(10)
	event["content"] = object{"b": "é\n", "a": []any{}}
	want := string(seal(event))
	for name, raw := range map[string]string{
		"white space": strings.NewReplacer(`":`, "\" :\n ", `,"`, ` , "`).Replace(want),
		"unsigned":    want[:len(want)-1] + `,"unsigned":{"age":1}}`,
		"escapes":     strings.Replace(want, "é", `\u00e9`, 1),
		"order":       `{"type":"m.room.message",` + want[1:],
		"duplicates":  strings.Replace(want, `"depth":12`, `"depth":13,"depth":12`, 1),
	} {
		e, err := Parse(v, []byte(raw))
		if err != nil || string(e.JSON()) != want || e.Redacted {
			t.Errorf("%s: %v, %v", name, e, err)
		}
	}
}

// The caller's buffer is free for reuse after Parse.
func TestParseKeepsNothing(t *testing.T) {
	raw := seal(sample(10))
	want := string(raw)
	e, err := Parse(version(t, "10"), raw)
	if err != nil {
		t.Fatal(err)
	}
	clear(raw)
	if string(e.JSON()) != want || e.Sender != "@alice:example.org" || e.PrevEventIDs()[0][0] != '$' {
		t.Error("the event changes with the buffer that it was parsed from")
	}
}

// A content hash that does not match leaves the redacted form, whose ID is that
// of the whole event.
//
// spec: server-server-api v1.19 "Validating hashes and signatures"
func TestParseContentHash(t *testing.T) {
	eachVersion(t, func(t *testing.T, n int, v *Version) {
		event := sample(n)
		event["type"], event["state_key"] = "m.room.member", "@bob:example.org"
		event["content"] = object{"membership": "invite", "displayname": "Bob"}
		good := seal(event)
		bad := []byte(strings.Replace(string(good), "Bob", "Rob", 1))
		e, err := Parse(v, good)
		if err != nil {
			t.Fatal(err)
		}
		r, err := Parse(v, bad)
		if err != nil {
			t.Fatal(err)
		}
		if e.Redacted || !r.Redacted || r.ID != e.ID || r.Membership() != "invite" || r.RoomID != e.RoomID || *r.StateKey != *e.StateKey {
			t.Errorf("redacted: %+v", r)
		}
		if string(r.Content()) != `{"membership":"invite"}` || string(r.JSON()) != string(e.Redact().JSON()) {
			t.Errorf("redacted: %s", r.JSON())
		}
	})
}

func TestParseErrors(t *testing.T) {
	set := func(name string, value any) func(object) { return func(o object) { o[name] = value } }
	drop := func(name string) func(object) { return func(o object) { delete(o, name) } }
	number := func(name, value string) func(object) { return set(name, json.Number(value)) }
	long := strings.Repeat("x", 256)
	for _, c := range []struct {
		name        string
		change      func(object)
		want        error // nil: accepted
		first, last int   // versions concerned
	}{
		{"unchanged", func(object) {}, nil, 1, 12},
		{"no type", drop("type"), ErrFormat, 1, 12},
		{"type no string", set("type", object{}), ErrFormat, 1, 12},
		{"type null", set("type", nil), ErrFormat, 1, 12},
		{"empty type", set("type", ""), nil, 1, 12},
		{"NUL in type and state key", func(o object) { o["type"], o["state_key"] = "a\x00", "\x00" }, nil, 1, 12},
		{"long type", set("type", long), ErrTooLarge, 1, 12},
		{"longest type", set("type", long[1:]), nil, 1, 12},
		{"type of few characters and many bytes", set("type", strings.Repeat("é", 200)), ErrTooLarge, 11, 12},
		{"type of few characters and many bytes", set("type", strings.Repeat("é", 200)), nil, 1, 10},
		{"type of many characters", set("type", strings.Repeat("é", 256)), ErrTooLarge, 1, 12},
		{"long state key", set("state_key", long), ErrTooLarge, 1, 12},
		{"state key no string", set("state_key", json.Number("1")), ErrFormat, 1, 12},
		{"state key null", set("state_key", nil), ErrFormat, 1, 12},
		{"no sender", drop("sender"), ErrFormat, 1, 12},
		{"sender no string", set("sender", []any{}), ErrFormat, 1, 12},
		{"long sender", set("sender", "@"+long+":example.org"), ErrTooLarge, 1, 12},
		{"sender without server", set("sender", "@alice"), ErrFormat, 1, 12},
		{"sender with empty server", set("sender", "@alice:"), ErrFormat, 1, 12},
		{"sender with malformed server", set("sender", "@alice:exa mple"), ErrFormat, 1, 12},
		{"sender of another kind", set("sender", "#alice:example.org"), ErrFormat, 1, 12},
		{"sender with NUL", set("sender", "@a\x00:example.org"), ErrFormat, 1, 12},
		{"historical sender", set("sender", "@Ä\n!:example.org"), nil, 1, 12},
		{"sender with empty localpart", set("sender", "@:example.org"), nil, 1, 12},
		{"no room", drop("room_id"), ErrFormat, 1, 12},
		{"room no string", set("room_id", json.Number("1")), ErrFormat, 1, 12},
		{"long room", set("room_id", "!"+long+":example.org"), ErrTooLarge, 1, 12},
		{"room without server", set("room_id", "!room"), ErrFormat, 1, 12},
		{"room without sigil", set("room_id", "room:example.org"), ErrFormat, 1, 12},
		{"room with NUL", set("room_id", "!\x00:example.org"), ErrFormat, 1, 12},
		{"room with server", set("room_id", "!mauT12AzsoqxV7Abvy_ApA-HNPK1LcT4GbP70_AOPyQ:a"), ErrFormat, 12, 12},
		{"room that is no hash", set("room_id", "!mauT12AzsoqxV7Abvy_ApA-HNPK1LcT4GbP70_AOPy"), ErrFormat, 12, 12},
		{"room in another alphabet", set("room_id", "!mauT12AzsoqxV7Abvy/ApA+HNPK1LcT4GbP70/AOPyQ"), ErrFormat, 12, 12},
		{"no content", drop("content"), ErrFormat, 1, 12},
		{"content no object", set("content", []any{}), ErrFormat, 1, 12},
		{"content null", set("content", nil), ErrFormat, 1, 12},
		{"no depth", drop("depth"), ErrFormat, 1, 12},
		{"depth no number", set("depth", "1"), ErrFormat, 1, 12},
		{"negative depth", number("depth", "-1"), ErrFormat, 1, 12},
		{"depth with fraction", number("depth", "1.0"), ErrFormat, 1, 5},
		{"depth with fraction", number("depth", "1.0"), ErrBadJSON, 6, 12},
		{"depth with exponent", number("depth", "1.5e0"), ErrFormat, 1, 5},
		{"depth at the limit", number("depth", "9007199254740991"), nil, 1, 12},
		{"depth beyond", number("depth", "9007199254740992"), ErrBadJSON, 6, 12},
		{"depth at the limit", number("depth", "9223372036854775807"), nil, 1, 5},
		{"depth beyond", number("depth", "9223372036854775808"), ErrFormat, 1, 5},
		{"depth far beyond", number("depth", strings.Repeat("9", 400)), ErrFormat, 1, 5},
		{"no time", drop("origin_server_ts"), ErrFormat, 1, 12},
		{"time no number", set("origin_server_ts", true), ErrFormat, 1, 12},
		{"negative time", number("origin_server_ts", "-1"), nil, 1, 12},
		{"time beyond 64 bits", number("origin_server_ts", "99999999999999999999"), ErrFormat, 1, 5},
		{"no signatures", drop("signatures"), ErrFormat, 1, 12},
		{"signatures no object", set("signatures", []any{}), ErrFormat, 1, 12},
		{"malformed signature", set("signatures", object{"a": object{"b": json.Number("1")}, "c": "d"}), nil, 1, 12},
		{"no prev_events", drop("prev_events"), ErrFormat, 1, 12},
		{"prev_events no array", set("prev_events", object{}), ErrFormat, 1, 12},
		{"no auth_events", drop("auth_events"), ErrFormat, 1, 12},
		{"auth_events no array", set("auth_events", "$x"), ErrFormat, 1, 12},
		{"empty references", func(o object) { o["prev_events"], o["auth_events"] = []any{}, []any{} }, nil, 1, 12},
		{"reference no string", set("prev_events", []any{json.Number("1")}), ErrFormat, 1, 12},
		{"reference with hash", set("prev_events", []any{[]any{"$a:b", object{}}}), ErrFormat, 3, 12},
		{"reference without hash", set("prev_events", []any{"$a:b"}), ErrFormat, 1, 2},
		{"reference half", set("auth_events", []any{[]any{"$a:b"}}), ErrFormat, 1, 2},
		{"reference with more", set("auth_events", []any{[]any{"$a:b", object{}, object{}}}), ErrFormat, 1, 2},
		{"reference with string hash", set("auth_events", []any{[]any{"$a:b", "x"}}), ErrFormat, 1, 2},
		{"reference without sigil", set("auth_events", []any{"Rqnc-F-dvnEYJTyHq_iKxU2bZ1CI92-kuZq3a5lr5Zg"}), ErrFormat, 3, 12},
		{"long reference", set("auth_events", []any{"$" + long}), ErrFormat, 3, 12},
		{"most prev_events", set("prev_events", refs20(20)), nil, 3, 12},
		{"too many prev_events", set("prev_events", refs20(21)), ErrFormat, 3, 12},
		{"most auth_events", set("auth_events", refs20(10)), nil, 3, 12},
		{"too many auth_events", set("auth_events", refs20(11)), ErrFormat, 3, 12},
		{"no event ID", drop("event_id"), ErrFormat, 1, 2},
		{"event ID no string", set("event_id", object{}), ErrFormat, 1, 2},
		{"event ID without server", set("event_id", "$abc"), ErrFormat, 1, 2},
		{"event ID of another kind", set("event_id", "!a:example.org"), ErrFormat, 1, 2},
		{"long event ID", set("event_id", "$"+long+":example.org"), ErrTooLarge, 1, 2},
		{"redacts no string", func(o object) { o["type"], o["redacts"] = TypeRedaction, object{} }, ErrFormat, 1, 10},
		{"redacts no string", func(o object) { o["type"], o["redacts"] = TypeRedaction, object{} }, nil, 11, 12},
		{"redacts of another type", set("redacts", object{}), nil, 1, 12},
		{"number in content", func(o object) { o["content"] = object{"a": json.Number("0.5")} }, ErrBadJSON, 6, 12},
		{"number in content", func(o object) { o["content"] = object{"a": json.Number("0.5")} }, nil, 1, 5},
		{"unknown members", set("m.x", object{"y": []any{nil}}), nil, 1, 12},
	} {
		for n := c.first; n <= c.last; n++ {
			event := sample(n)
			c.change(event)
			e, err := Parse(version(t, fmt.Sprint(n)), seal(event))
			if !errors.Is(err, c.want) || (err == nil) != (e != nil) {
				t.Errorf("version %d, %s: %v, want %v", n, c.name, err, c.want)
			}
			if err == nil && e.Redacted {
				t.Errorf("version %d, %s: redacted", n, c.name)
			}
		}
	}
}

func refs20(n int) []any {
	list := make([]any, n)
	for i := range list {
		list[i] = fmt.Sprintf("$%043d", i)
	}
	return list
}

func TestParseHashes(t *testing.T) {
	v := version(t, "10")
	good := string(seal(sample(10)))
	event := naiveDecode(t, []byte(good))
	for _, c := range []struct {
		name     string
		hashes   any
		want     error
		redacted bool
	}{
		{"missing", nil, ErrFormat, false},
		{"no object", "x", ErrFormat, false},
		{"none", object{}, ErrFormat, false},
		{"another algorithm", object{"md5": "x"}, ErrFormat, false},
		{"no string", object{"sha256": object{}}, ErrFormat, false},
		{"no base64", object{"sha256": "!"}, ErrFormat, false},
		{"empty", object{"sha256": ""}, nil, true},
		{"short", object{"sha256": "AAAA"}, nil, true},
		{"padded", object{"sha256": naiveContentHash(event) + "="}, nil, false},
		{"with another", object{"sha256": naiveContentHash(event), "x": "y"}, nil, false},
	} {
		if event["hashes"] = c.hashes; c.hashes == nil {
			delete(event, "hashes")
		}
		e, err := Parse(v, []byte(naiveCanonical(event)))
		if !errors.Is(err, c.want) || err == nil && e.Redacted != c.redacted {
			t.Errorf("%s: %v, %v", c.name, e, err)
		}
	}
}

func TestParseSize(t *testing.T) {
	v := version(t, "11")
	sized := func(n int) object {
		event := sample(11)
		event["content"] = object{"body": ""}
		event["content"] = object{"body": strings.Repeat("x", n-len(seal(event)))}
		return event
	}
	if raw := seal(sized(MaxSize)); len(raw) != MaxSize {
		t.Fatalf("%d bytes", len(raw))
	} else if _, err := Parse(v, raw); err != nil {
		t.Errorf("largest event: %v", err)
	} else if _, err := Parse(v, []byte(strings.Replace(string(raw), `,"`, `,  "`, 4))); err != nil {
		t.Errorf("largest event with white space: %v", err)
	} else if _, err := Parse(v, append(raw[:len(raw)-1], `,"unsigned":{"age":1}}`...)); err != nil {
		t.Errorf("largest event with unsigned: %v", err)
	}
	if _, err := Parse(v, seal(sized(MaxSize+1))); !errors.Is(err, ErrTooLarge) {
		t.Errorf("larger event: %v", err)
	}
	if _, err := Parse(v, []byte(strings.Repeat(" ", maxRawSize)+"{}")); !errors.Is(err, ErrTooLarge) {
		t.Errorf("much white space: %v", err)
	}
}

func TestParseHostileJSON(t *testing.T) {
	deep := strings.Repeat("[", canonicaljson.MaxDepth+1) + strings.Repeat("]", canonicaljson.MaxDepth+1)
	for _, raw := range []string{
		"", "{", "null x", "\xff", `{"a":"\ud800"}`, "{\"a\":\"\xff\"}", deep, `{"content":` + deep + `}`, `{"a":1e999}`, `{"depth":01}`,
	} {
		for _, v := range Versions() {
			if _, err := Parse(v, []byte(raw)); !errors.Is(err, ErrBadJSON) {
				t.Errorf("version %s, %.40q: %v", v.ID, raw, err)
			}
		}
	}
	for _, raw := range []string{"{}", "[]", "null", `"x"`, "1", `[{"type":"x"}]`} {
		for _, v := range Versions() {
			if _, err := Parse(v, []byte(raw)); !errors.Is(err, ErrFormat) {
				t.Errorf("version %s, %q: %v", v.ID, raw, err)
			}
		}
	}
}

// Of duplicate members the last counts, for hashing as for reading.
func TestParseDuplicates(t *testing.T) {
	v := version(t, "12")
	raw := string(seal(sample(12)))
	doubled := `{"sender":"@mallory:evil.example","content":{"x":1},` + raw[1:]
	e, err := Parse(v, []byte(doubled))
	if err != nil || e.Sender != "@alice:example.org" || e.Redacted || string(e.JSON()) != raw {
		t.Errorf("%v, %v", e, err)
	}
	e, err = Parse(v, []byte(raw[:len(raw)-1]+`,"content":{"body":"forged"}}`))
	if err != nil || !e.Redacted {
		t.Errorf("%v, %v", e, err)
	}
}

func TestOversized(t *testing.T) {
	event := sample(10)
	event["state_key"] = strings.Repeat("é", 128)
	e, err := Parse(version(t, "10"), seal(event))
	if err != nil || !e.Oversized() {
		t.Errorf("256 bytes: %v, %v", e, err)
	}
	event["state_key"] = strings.Repeat("é", 127)
	if e, err = Parse(version(t, "10"), seal(event)); err != nil || e.Oversized() {
		t.Errorf("254 bytes: %v, %v", e, err)
	}
}

func TestParseCreateV12(t *testing.T) {
	v := version(t, "12")
	event := sample(12)
	event["type"], event["state_key"], event["content"] = TypeCreate, "", object{"room_version": "12"}
	event["prev_events"], event["auth_events"] = []any{}, []any{}
	if _, err := Parse(v, seal(event)); !errors.Is(err, ErrFormat) {
		t.Errorf("create event with room_id: %v", err)
	}
	delete(event, "room_id")
	raw := seal(event)
	e, err := Parse(v, raw)
	if err != nil || e.RoomID != "!"+e.ID[1:] || e.ID != naiveID(12, naiveDecode(t, raw)) || e.CarriesRoomID() {
		t.Fatalf("create event: %+v, %v", e, err)
	}
	if stored, err := FromStore(v, raw, e.ID, false); err != nil || stored.RoomID != e.RoomID {
		t.Errorf("from the store: %v, %v", stored, err)
	}
	if r := e.Redact(); r.RoomID != e.RoomID || r.ID != e.ID {
		t.Errorf("redacted: %v", r)
	}
	// Events of that type that are not the room's create event need a room_id,
	// and are refused by the authorisation rules for having one.
	event["state_key"] = "x"
	if _, err := Parse(v, seal(event)); !errors.Is(err, ErrFormat) {
		t.Errorf("other state key, no room_id: %v", err)
	}
	event["room_id"] = e.RoomID
	if e, err := Parse(v, seal(event)); err != nil || !e.CarriesRoomID() {
		t.Errorf("other state key: %v, %v", e, err)
	}
}

func TestRepeatedReferences(t *testing.T) {
	event := sample(11)
	const a, b = "$Rqnc-F-dvnEYJTyHq_iKxU2bZ1CI92-kuZq3a5lr5Zg", "$X7GhHPJbkwbcpqpGqyjq1n4lVjDdYmZMXSCaf3ZSLEw"
	event["prev_events"], event["auth_events"] = []any{a, b, a}, []any{b, b, a}
	e, err := Parse(version(t, "11"), seal(event))
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(e.PrevEventIDs(), " "); got != a+" "+b {
		t.Errorf("prev_events %s", got)
	}
	if got := strings.Join(e.AuthEventIDs(), " "); got != b+" "+b+" "+a {
		t.Errorf("auth_events %s", got)
	}
}

func TestFromStoreCorrupt(t *testing.T) {
	raw := seal(sample(10))
	for i := range raw {
		if _, err := FromStore(version(t, "10"), raw[:i], "$x", false); !errors.Is(err, ErrFormat) {
			t.Fatalf("the first %d bytes: %v", i, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	for n := 1; n <= 12; n++ {
		f.Add(n, seal(sample(n)))
	}
	for _, e := range realEvents {
		for n := 1; n <= 12; n++ {
			f.Add(n, []byte(e.json))
		}
	}
	f.Fuzz(func(t *testing.T, n int, raw []byte) {
		if n < 1 || n > 12 {
			return
		}
		v := Versions()[n-1]
		_, _ = ParseTemplate(v, raw)
		e, err := Parse(v, raw)
		if err != nil {
			if !errors.Is(err, ErrFormat) && !errors.Is(err, ErrBadJSON) && !errors.Is(err, ErrTooLarge) {
				t.Fatalf("error of no kind: %v", err)
			}
			return
		}
		checkParsed(t, n, e)
		// The fuzzer finds no hashes: give the event its own.
		canon, err := canonicaljson.Canonical(raw, v.jsonMode())
		if err != nil {
			t.Fatal(err)
		}
		hash := contentHash(canon)
		sealed, err := Parse(v, canonicaljsonWith(t, canon, `"hashes":{"sha256":"`+signing.EncodeBase64(hash[:])+`"}`))
		if errors.Is(err, ErrTooLarge) {
			return
		}
		if err != nil || sealed.Redacted {
			t.Fatalf("with the right hash: %+v, %v", sealed, err)
		}
		checkParsed(t, n, sealed)
	})
}

// checkParsed states what holds for every event that Parse returns.
func checkParsed(t *testing.T, n int, e *Event) {
	v := e.Version()
	if again, err := canonicaljson.Canonical(e.JSON(), v.jsonMode()); err != nil || string(again) != string(e.JSON()) {
		t.Fatalf("not canonical: %s", e.JSON())
	}
	if len(e.JSON()) > MaxSize {
		t.Fatalf("%d bytes", len(e.JSON()))
	}
	event := naiveDecode(t, e.JSON())
	if id := naiveID(n, event); id != e.ID {
		t.Fatalf("ID %s, want %s", e.ID, id)
	}
	claimed, err := signing.DecodeBase64(event["hashes"].(object)["sha256"].(string))
	if intact := signing.EncodeBase64(claimed) == naiveContentHash(event); err != nil || !e.Redacted && !intact {
		t.Fatalf("wrong content hash accepted in %s", e.JSON())
	}
	r := e.Redact()
	if want := naiveCanonical(naiveRedact(n, event)); string(r.JSON()) != want || r.Redact() != r {
		t.Fatalf("redacted %s, want %s", r.JSON(), want)
	}
	if string(r.SigningBytes()) != string(e.SigningBytes()) || r.ID != e.ID || r.RoomID != e.RoomID || r.Membership() != e.Membership() {
		t.Fatalf("redaction changes what it must not in %s", e.JSON())
	}
	again, err := Parse(v, e.JSON())
	if err != nil || again.ID != e.ID || string(again.JSON()) != string(e.JSON()) && !again.Redacted {
		t.Fatalf("parsed again: %v, %v", again, err)
	}
	stored, err := FromStore(v, e.JSON(), e.ID, e.Redacted)
	if err != nil || !reflect.DeepEqual(stored, e) {
		t.Fatalf("from the store %+v, %v; want %+v", stored, err, e)
	}
	for _, b := range [][]byte{append(e.AppendClient(nil), '}'), e.AppendStripped(nil)} {
		if !json.Valid(b) {
			t.Fatalf("client form %s", b)
		}
	}
	_, _, _, _ = e.RequiredSigners(), e.Signatures(""), e.Creators(), e.Ref()
}
