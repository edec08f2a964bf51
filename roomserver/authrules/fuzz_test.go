package authrules

import (
	"encoding/json"
	"errors"
	"testing"

	"github.com/myelin-im/myelin/internal/canonicaljson"
	"github.com/myelin-im/myelin/roomserver/pdu"
)

// FuzzCheck judges events with any content against a state with any content. Nothing may panic, a
// verdict is nil or an *Error, and it is the same again once everything is parsed.
func FuzzCheck(f *testing.F) {
	for version := uint8(1); version <= newestList; version++ {
		f.Add(version, pdu.TypePowerLevels, "", "@mod:one", `{"users":{"@mod:one":50},"events":{"x":1}}`, `{"users":{"@mod:one":50,"@user:one":50}}`, `{"join_rule":"public"}`, `{"creator":"@mod:one"}`)
		f.Add(version, pdu.TypeMember, "@new:two", "@new:two", `{"membership":"join","join_authorised_via_users_server":"@mod:one"}`, `{"invite":"50"}`, `{"join_rule":"restricted","allow":[{"type":"m.room_membership","room_id":"!a:b"}]}`, `{"additional_creators":["@a:b"]}`)
		f.Add(version, pdu.TypeMember, "@new:two", "@mod:one", `{"membership":"invite","third_party_invite":{"signed":{"mxid":"@new:two","token":"token","signatures":{"a":{"ed25519:b":"c"}}}}}`, `{}`, `{}`, `{"m.federate":false}`)
		f.Add(version, pdu.TypeCreate, "", "@mod:one", `{"room_version":"12","additional_creators":[1]}`, `[]`, `{"join_rule":{}}`, `{}`)
		f.Add(version, "m.room.message", "@x", "@mod:one", `{}`, `{"users_default":1.5,"events_default":" +7 ","users":null}`, `{"allow":7}`, `{"creator":0}`)
	}
	f.Fuzz(func(t *testing.T, version uint8, eventType, stateKey, sender, content, power, joinRules, create string) {
		w := newWorld(1 + int(version)%newestList)
		st := State(w)
		for _, part := range []struct{ typ, key, content string }{
			{pdu.TypeCreate, "", create}, {pdu.TypePowerLevels, "", power}, {pdu.TypeJoinRules, "", joinRules},
			{pdu.TypeMember, "@mod:one", `{"membership":"join"}`}, {pdu.TypeThirdPartyInvite, "token", content},
		} {
			if ev := fuzzEvent(w, part.typ, &part.key, "@mod:one", part.content); ev != nil {
				w.put(ev)
			}
		}
		for _, key := range []*string{&stateKey, nil} {
			ev := fuzzEvent(w, eventType, key, sender, content)
			if ev == nil {
				continue
			}
			first := Check(ev, st)
			var refused *Error
			if first != nil && !errors.As(first, &refused) {
				t.Errorf("neither a verdict nor nil: %v", first)
			}
			if second := Check(ev, st); (first == nil) != (second == nil) {
				t.Errorf("%v, then %v", first, second)
			}
			Required(w.v, Header{eventType, key, sender, []byte(content)})
			if first == nil && ev.Type == pdu.TypePowerLevels && key != nil && *key == "" {
				checkNoEscalation(t, w, ev)
			}
		}
	})
}

// fuzzEvent makes an event of any content; nil if pdu does not take it.
func fuzzEvent(w *world, eventType string, stateKey *string, sender, content string) *pdu.Event {
	if _, err := canonicaljson.Canonical([]byte(content), canonicaljson.Lax); err != nil || content[0] != '{' {
		return nil
	}
	w.events++
	m := map[string]any{
		"type": eventType, "sender": sender, "content": json.RawMessage(content), "depth": w.events, "origin_server_ts": 1,
		"hashes": map[string]any{}, "signatures": map[string]any{}, "auth_events": []any{}, "prev_events": []any{}, "room_id": w.roomID,
	}
	if stateKey != nil {
		m["state_key"] = *stateKey
	}
	seed := "fuzz" + eventType
	if eventType == pdu.TypeCreate {
		seed = "create"
		if w.v.RoomIDIsCreateHash {
			delete(m, "room_id")
		}
	} else {
		m["prev_events"] = w.prevEvents(nil)
	}
	ev, err := w.make(m, w.eventID(seed, "one"))
	if err != nil {
		return nil
	}
	return ev
}

// checkNoEscalation checks what the rules on power levels are for: where the room has power levels,
// new ones give nobody more than their sender has, unless they had it before, and take
// nothing from others at or above the sender.
func checkNoEscalation(t *testing.T, w *world, ev *pdu.Event) {
	t.Helper()
	old := w.state[StateKeyTuple{pdu.TypePowerLevels, ""}]
	create := w.state[StateKeyTuple{pdu.TypeCreate, ""}]
	if old == nil {
		return
	}
	before, after := PowerLevels(old, create), PowerLevels(ev, create)
	level := before.User(ev.Sender)
	for _, u := range after.content.users {
		was, stated := before.content.users.get(u.key)
		if u.level > level && (!stated || was != u.level) {
			t.Errorf("%s with %d gave %s %d", ev.Sender, level, u.key, u.level)
		}
	}
	for _, u := range before.content.users {
		now, stated := after.content.users.get(u.key)
		if u.level >= level && u.key != ev.Sender && (!stated || now != u.level) {
			t.Errorf("%s with %d took %d from %s", ev.Sender, level, u.level, u.key)
		}
	}
}
