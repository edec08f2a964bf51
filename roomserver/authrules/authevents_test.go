package authrules

import (
	"errors"
	"strings"
	"testing"

	"github.com/myelin-im/myelin/roomserver/pdu"
)

func TestRequired(t *testing.T) {
	key := func(s string) *string { return &s }
	alice, bob := key("@alice:one"), key("@bob:two")
	tests := []struct {
		name     string
		header   Header
		versions string
		want     string
	}{
		{"create", Header{Type: "m.room.create", StateKey: key(""), Sender: "@alice:one"}, "1-12", ""},
		{"message", Header{Type: "m.room.message", Sender: "@alice:one", Content: []byte(`{"membership":"join"}`)}, "1-11", "create power_levels member/@alice:one"},
		{"message", Header{Type: "m.room.message", Sender: "@alice:one"}, "12", "power_levels member/@alice:one"},
		{"join", Header{"m.room.member", alice, "@alice:one", []byte(`{"membership":"join"}`)}, "1-11", "create power_levels member/@alice:one join_rules"},
		{"join", Header{"m.room.member", alice, "@alice:one", []byte(`{"membership":"join"}`)}, "12", "power_levels member/@alice:one join_rules"},
		{"knock", Header{"m.room.member", alice, "@alice:one", []byte(`{"membership":"knock"}`)}, "7-11", "create power_levels member/@alice:one join_rules"},
		{"leave", Header{"m.room.member", alice, "@alice:one", []byte(`{"membership":"leave"}`)}, "1-11", "create power_levels member/@alice:one"},
		{"ban", Header{"m.room.member", bob, "@alice:one", []byte(`{"membership":"ban"}`)}, "1-11", "create power_levels member/@alice:one member/@bob:two"},
		{"invite", Header{"m.room.member", bob, "@alice:one", []byte(`{"membership":"invite"}`)}, "1-11", "create power_levels member/@alice:one member/@bob:two join_rules"},
		{
			"third-party invite",
			Header{"m.room.member", bob, "@alice:one", []byte(` { "third_party_invite": {"signed": {"token": "t\u006fken"}}, "membership": "invite" } `)},
			"1-11", "create power_levels member/@alice:one member/@bob:two join_rules third_party_invite/token",
		},
		{
			"third-party invite without a token",
			Header{"m.room.member", bob, "@alice:one", []byte(`{"third_party_invite":{"signed":[]},"membership":"invite"}`)},
			"1-11", "create power_levels member/@alice:one member/@bob:two join_rules",
		},
		{
			"restricted join",
			Header{"m.room.member", alice, "@alice:one", []byte(`{"membership":"join","join_authorised_via_users_server":"@carol:two"}`)},
			"1-7", "create power_levels member/@alice:one join_rules",
		},
		{
			"restricted join",
			Header{"m.room.member", alice, "@alice:one", []byte(`{"membership":"join","join_authorised_via_users_server":"@carol:two"}`)},
			"8-11", "create power_levels member/@alice:one join_rules member/@carol:two",
		},
		{
			"restricted join authorised by oneself",
			Header{"m.room.member", alice, "@alice:one", []byte(`{"membership":"join","join_authorised_via_users_server":"@alice:one"}`)},
			"8-11", "create power_levels member/@alice:one join_rules",
		},
		{
			"leave with an authoriser",
			Header{"m.room.member", alice, "@alice:one", []byte(`{"membership":"leave","join_authorised_via_users_server":"@carol:two"}`)},
			"8-11", "create power_levels member/@alice:one",
		},
		{"no state key", Header{Type: "m.room.member", Sender: "@alice:one", Content: []byte(`{"membership":"leave"}`)}, "1-11", "create power_levels member/@alice:one"},
		{"no JSON", Header{"m.room.member", bob, "@alice:one", []byte(`{`)}, "1-11", "create power_levels member/@alice:one member/@bob:two"},
	}
	for _, test := range tests {
		for _, version := range parseVersions([]string{test.versions}) {
			var got []string
			for _, k := range Required(newWorld(version).v, test.header) {
				place := strings.TrimPrefix(k.Type, "m.room.")
				if k.StateKey != "" {
					place += "/" + k.StateKey
				}
				got = append(got, place)
			}
			if strings.Join(got, " ") != test.want {
				t.Errorf("%s in version %d: %v, want %v", test.name, version, got, test.want)
			}
		}
	}
}

func TestCheckStateIndependentNeedsAllEvents(t *testing.T) {
	w := worldOf(t, 11, publicRoom...)
	ev, err := w.event(line{text: "@user:one sends m.room.message"}, eventOptions{authEvents: []string{"$unknown"}})
	if err != nil {
		t.Fatal(err)
	}
	var refused *Error
	if err := CheckStateIndependent(ev, nil, nil); err == nil || errors.As(err, &refused) {
		t.Errorf("an unknown auth event: %v", err)
	}
}

// TestCreateEventCitesNothing: the rules on auth_events come after the rule on create events.
func TestCreateEventCitesNothing(t *testing.T) {
	w := worldOf(t, 11, publicRoom...)
	if err := CheckStateIndependent(w.state[StateKeyTuple{pdu.TypeCreate, ""}], nil, nil); err != nil {
		t.Error(err)
	}
}
