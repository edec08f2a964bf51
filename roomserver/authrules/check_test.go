package authrules

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/myelin-im/myelin/roomserver/pdu"
)

var publicRoom = []string{
	"@creator:one creates", "@creator:one joins", "@mod:one joins", "@user:one joins",
	`@creator:one sets power_levels {"users": {"@mod:one": 50}}`,
	`@creator:one sets join_rules {"join_rule": "restricted"}`,
	"@mod:one offers token with key1",
}

func mustEvent(t testing.TB, w *world, text string) *pdu.Event {
	t.Helper()
	ev, err := w.event(line{text: text}, eventOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return ev
}

// brokenState fails at one place.
type brokenState struct {
	State
	at StateKeyTuple
}

var errBroken = errors.New("the disk is gone")

func (s brokenState) Event(eventType, stateKey string) (*pdu.Event, error) {
	if (StateKeyTuple{eventType, stateKey}) == s.at {
		return nil, errBroken
	}
	return s.State.Event(eventType, stateKey)
}

// TestStateErrors: whatever the state cannot answer decides nothing.
func TestStateErrors(t *testing.T) {
	w := worldOf(t, 11, publicRoom...)
	member := func(user string) StateKeyTuple { return StateKeyTuple{pdu.TypeMember, user} }
	create, power, joinRules := StateKeyTuple{pdu.TypeCreate, ""}, StateKeyTuple{pdu.TypePowerLevels, ""}, StateKeyTuple{pdu.TypeJoinRules, ""}
	tests := []struct {
		event string
		needs []StateKeyTuple
	}{
		{"@user:one sends m.room.message", []StateKeyTuple{create, power, member("@user:one")}},
		{`@new:two joins {"join_authorised_via_users_server": "@mod:one"}`, []StateKeyTuple{create, joinRules, power, member("@new:two"), member("@mod:one")}},
		{"@user:one leaves", []StateKeyTuple{create, member("@user:one")}},
		{"@user:one invites @new:two", []StateKeyTuple{create, power, member("@user:one"), member("@new:two")}},
		{"@mod:one invites @new:two through token signed key1", []StateKeyTuple{create, member("@new:two"), {pdu.TypeThirdPartyInvite, "token"}}},
		{"@mod:one kicks @user:one", []StateKeyTuple{create, power, member("@mod:one"), member("@user:one")}},
		{"@mod:one bans @user:one", []StateKeyTuple{create, power, member("@mod:one")}},
	}
	for _, test := range tests {
		ev := mustEvent(t, w, test.event)
		if err := Check(ev, w); err != nil {
			t.Errorf("%s: %v", test.event, err)
		}
		for _, place := range test.needs {
			err := Check(ev, brokenState{w, place})
			var refused *Error
			if !errors.Is(err, errBroken) || errors.As(err, &refused) {
				t.Errorf("%s without %v: %v", test.event, place, err)
			}
		}
	}
	knock := worldOf(t, 11, append(slices.Clone(publicRoom), `@creator:one sets join_rules {"join_rule": "knock"}`)...)
	for _, place := range []StateKeyTuple{joinRules, member("@new:two")} {
		if err := Check(mustEvent(t, knock, "@new:two knocks"), brokenState{knock, place}); !errors.Is(err, errBroken) {
			t.Errorf("knock without %v: %v", place, err)
		}
	}
}

// TestOnlyRequiredStateIsAsked: Check looks at nothing but the create event and what the selection of
// auth events names, so that an event can be judged by the events that it cites.
func TestOnlyRequiredStateIsAsked(t *testing.T) {
	for version := 1; version <= newestList; version++ {
		w := worldOf(t, version, publicRoom...)
		for _, text := range []string{
			"@user:one sends m.room.message", "@mod:one sets topic", "@mod:one sets power_levels", "@mod:one offers other with key1",
			"@user:one joins", `@new:two joins {"join_authorised_via_users_server": "@mod:one"}`, "@user:one leaves", "@new:two knocks",
			"@user:one invites @new:two", "@mod:one invites @new:two through token signed key1", "@mod:one kicks @user:one",
			"@mod:one bans @user:one", "@mod:one redacts $x:two", "@mod:one sets aliases/one",
		} {
			ev := mustEvent(t, w, text)
			required := Required(w.v, Header{ev.Type, ev.StateKey, ev.Sender, ev.Content()})
			_ = Check(ev, stateFunc(func(eventType, stateKey string) (*pdu.Event, error) {
				k := StateKeyTuple{eventType, stateKey}
				if eventType != pdu.TypeCreate && !slices.Contains(required, k) {
					t.Errorf("version %d: %s asks for %v", version, text, k)
				}
				return w.state[k], nil
			}))
		}
	}
}

type stateFunc func(eventType, stateKey string) (*pdu.Event, error)

func (f stateFunc) Event(eventType, stateKey string) (*pdu.Event, error) {
	return f(eventType, stateKey)
}

// TestEventList judges events by the events they cite.
func TestEventList(t *testing.T) {
	for version := 1; version <= newestList; version++ {
		w := worldOf(t, version, publicRoom...)
		ev := mustEvent(t, w, "@user:one sends m.room.message")
		var cited EventList
		for _, k := range Required(w.v, Header{ev.Type, ev.StateKey, ev.Sender, ev.Content()}) {
			cited = append(cited, w.state[k])
		}
		if w.v.RoomIDIsCreateHash {
			cited = append(cited, w.state[StateKeyTuple{pdu.TypeCreate, ""}])
		}
		if err := Check(ev, cited); err != nil {
			t.Errorf("version %d: %v", version, err)
		}
		if err := Check(ev, EventList{}); err == nil {
			t.Errorf("version %d: allowed by nothing", version)
		}
	}
}

func TestErrorText(t *testing.T) {
	w := worldOf(t, 11, publicRoom...)
	err := Check(mustEvent(t, w, "@stranger:two sends m.room.message"), w)
	want := "not authorised by rule 5: the sender is not in the room"
	if err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
}

// TestThirdPartyWorkIsBounded: an invite with very many signatures for very many keys is refused
// without trying them all.
func TestThirdPartyWorkIsBounded(t *testing.T) {
	var keys, signers []string
	for i := range 60 {
		keys = append(keys, "offered"+strings.Repeat("x", i))
		signers = append(signers, "signing"+strings.Repeat("x", i))
	}
	w := worldOf(t, 11, append(slices.Clone(publicRoom), "@mod:one offers many with "+strings.Join(append(keys, "good"), " "))...)
	try := func(signers ...string) error {
		return Check(mustEvent(t, w, "@mod:one invites @new:two through many signed "+strings.Join(signers, " ")), w)
	}
	if err := try("good"); err != nil {
		t.Errorf("one signature for many keys: %v", err)
	}
	if err := try(append(signers, "good")...); err == nil {
		t.Error("3721 verifications for one event")
	}
}

func TestCanRedact(t *testing.T) {
	for version := 1; version <= newestList; version++ {
		w := worldOf(t, version, publicRoom...)
		levels := PowerLevels(w.state[StateKeyTuple{pdu.TypePowerLevels, ""}], w.state[StateKeyTuple{pdu.TypeCreate, ""}])
		target := mustEvent(t, w, "@user:one sends m.room.message")
		other := mustEvent(t, w, "@user:two sends m.room.message")
		foreign := w.copyOf(target, func(m map[string]any) { m["room_id"] = foreignRoomID })
		for _, test := range []struct {
			by     string
			target *pdu.Event
			want   bool
		}{
			{"@user:one", target, true},
			{"@stranger:one", target, true}, // same server
			{"@user:one", other, false},
			{"@mod:one", other, true},
			{"@mod:one", foreign, false},
			{"@creator:one", other, version >= 12},
		} {
			redaction := mustEvent(t, w, test.by+" redacts "+test.target.ID)
			if got := CanRedact(redaction, test.target, levels); got != test.want {
				t.Errorf("version %d: %s redacts an event of %s: %v", version, test.by, test.target.Sender, got)
			}
		}
	}
}
