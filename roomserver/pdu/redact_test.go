package pdu

import (
	"encoding/json"
	"fmt"
	"testing"
)

// spec: rooms "Redactions"
func TestRedactContent(t *testing.T) {
	for _, c := range []struct {
		typ, content, want string
		first, last        int
	}{
		{"m.room.message", `{"body":"x","msgtype":"m.text"}`, `{}`, 1, 12},
		{"m.room.name", `{"name":"x"}`, `{}`, 1, 12},
		{"m.room.member", `{"membership":"join","displayname":"x","reason":"y"}`, `{"membership":"join"}`, 1, 12},
		{"m.room.member", `{"membership":{"any":[1]}}`, `{"membership":{"any":[1]}}`, 1, 12},
		{"m.room.member", `{"join_authorised_via_users_server":"@a:b","membership":"join"}`, `{"membership":"join"}`, 1, 8},
		{"m.room.member", `{"join_authorised_via_users_server":"@a:b","membership":"join"}`, `{"join_authorised_via_users_server":"@a:b","membership":"join"}`, 9, 12},
		{"m.room.member", `{"membership":"invite","third_party_invite":{"display_name":"x","signed":{"token":"t"}}}`, `{"membership":"invite"}`, 1, 10},
		{"m.room.member", `{"membership":"invite","third_party_invite":{"display_name":"x","signed":{"token":"t"}}}`, `{"membership":"invite","third_party_invite":{"signed":{"token":"t"}}}`, 11, 12},
		{"m.room.member", `{"membership":"invite","third_party_invite":{"display_name":"x"}}`, `{"membership":"invite","third_party_invite":{}}`, 11, 12},
		{"m.room.member", `{"membership":"invite","third_party_invite":"x"}`, `{"membership":"invite"}`, 11, 12},
		{"m.room.create", `{"creator":"@a:b","m.federate":true,"room_version":"1"}`, `{"creator":"@a:b"}`, 1, 10},
		{"m.room.create", `{"creator":"@a:b","m.federate":true,"room_version":"1"}`, `{"creator":"@a:b","m.federate":true,"room_version":"1"}`, 11, 12},
		{"m.room.join_rules", `{"allow":[],"join_rule":"restricted","x":1}`, `{"join_rule":"restricted"}`, 1, 7},
		{"m.room.join_rules", `{"allow":[],"join_rule":"restricted","x":1}`, `{"allow":[],"join_rule":"restricted"}`, 8, 12},
		{
			"m.room.power_levels",
			`{"ban":1,"events":{"a":2},"events_default":3,"invite":4,"kick":5,"notifications":{},"redact":6,"state_default":7,"users":{"@a:b":8},"users_default":9}`,
			`{"ban":1,"events":{"a":2},"events_default":3,"kick":5,"redact":6,"state_default":7,"users":{"@a:b":8},"users_default":9}`, 1, 10,
		},
		{
			"m.room.power_levels",
			`{"ban":1,"events":{"a":2},"events_default":3,"invite":4,"kick":5,"notifications":{},"redact":6,"state_default":7,"users":{"@a:b":8},"users_default":9}`,
			`{"ban":1,"events":{"a":2},"events_default":3,"invite":4,"kick":5,"redact":6,"state_default":7,"users":{"@a:b":8},"users_default":9}`, 11, 12,
		},
		{"m.room.aliases", `{"aliases":["#a:b"],"x":1}`, `{"aliases":["#a:b"]}`, 1, 5},
		{"m.room.aliases", `{"aliases":["#a:b"],"x":1}`, `{}`, 6, 12},
		{"m.room.history_visibility", `{"history_visibility":"shared","x":1}`, `{"history_visibility":"shared"}`, 1, 12},
		{"m.room.redaction", `{"reason":"x","redacts":"$a"}`, `{}`, 1, 10},
		{"m.room.redaction", `{"reason":"x","redacts":"$a"}`, `{"redacts":"$a"}`, 11, 12},
	} {
		for n := c.first; n <= c.last; n++ {
			got := appendRedactedContent(nil, version(t, fmt.Sprint(n)), c.typ, []byte(c.content))
			if string(got) != c.want {
				t.Errorf("version %d, %s: %s, want %s", n, c.typ, got, c.want)
			}
		}
	}
}

func TestRedactTopLevel(t *testing.T) {
	eachVersion(t, func(t *testing.T, n int, v *Version) {
		event := sample(n)
		event["type"], event["state_key"], event["redacts"] = TypeRedaction, "", "$x:y"
		event["membership"], event["origin"], event["prev_state"] = "join", "example.org", []any{}
		event["unknown"], event["event_id"] = json.Number("1"), "$kept:example.org"
		e, err := Parse(v, seal(event))
		if err != nil {
			t.Fatal(err)
		}
		r := e.Redact()
		if want := naiveCanonical(naiveRedact(n, naiveDecode(t, e.JSON()))); string(r.JSON()) != want {
			t.Errorf("%s, want %s", r.JSON(), want)
		}
		if !r.Redacted || e.Redacted || r.ID != e.ID || r.Redact() != r || r.Redacts() != "" {
			t.Errorf("redacted event %+v", r)
		}
	})
}
