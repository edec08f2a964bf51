package authrules

import (
	"fmt"
	"slices"

	"github.com/myelin-im/myelin/internal/canonicaljson"
	"github.com/myelin-im/myelin/roomserver/pdu"
)

// StateKeyTuple names a place in the state of a room.
type StateKeyTuple struct{ Type, StateKey string }

// Header is what the selection of auth events depends on. The event need not exist yet.
type Header struct {
	Type     string
	StateKey *string // nil if the event is not a state event
	Sender   string
	Content  []byte // a JSON object of any form
}

// Required lists the places of the state whose events an event has to cite as auth_events, as far as
// the state has them: at most seven, each once. For a create event there are none, and from
// room version 12 on the create event is never one of them.
//
// spec: server-server-api "Auth events selection"
func Required(v *pdu.Version, h Header) []StateKeyTuple {
	if h.Type == pdu.TypeCreate {
		return nil
	}
	list := make([]StateKeyTuple, 0, 7)
	add := func(eventType, stateKey string) {
		if t := (StateKeyTuple{eventType, stateKey}); !slices.Contains(list, t) {
			list = append(list, t)
		}
	}
	if !v.RoomIDIsCreateHash {
		add(pdu.TypeCreate, "")
	}
	add(pdu.TypePowerLevels, "")
	add(pdu.TypeMember, h.Sender)
	if h.Type != pdu.TypeMember {
		return list
	}

	if h.StateKey != nil {
		add(pdu.TypeMember, *h.StateKey)
	}
	content, err := canonicaljson.Canonical(h.Content, canonicaljson.Lax)
	if err != nil {
		// The event will not be one.
		return list
	}
	membership, _ := text(canonicaljson.Member(content, "membership"))
	switch membership {
	case MembershipJoin, MembershipInvite, MembershipKnock:
		add(pdu.TypeJoinRules, "")
	}
	if membership == MembershipInvite {
		signed := canonicaljson.Member(canonicaljson.Member(content, "third_party_invite"), "signed")
		if token, ok := text(canonicaljson.Member(signed, "token")); ok {
			add(pdu.TypeThirdPartyInvite, token)
		}
	}
	if membership == MembershipJoin && v.RestrictedJoins {
		if user, ok := text(canonicaljson.Member(content, "join_authorised_via_users_server")); ok {
			add(pdu.TypeMember, user)
		}
	}
	return list
}

// CheckStateIndependent decides whether an event may cite the auth_events it cites: none twice for a
// place of the state, only those that Required names, none that was rejected, none of another
// room, and, up to version 11, the create event. authEvents are the cited events in any order, all
// of them known to the caller, and rejected tells of an event ID whether that event was rejected; nil
// means that none was. It says nothing about create events, which cite no others.
//
// The result is nil or an *Error; any other error says that authEvents is not complete.
//
// spec: rooms/v1 "Authorisation rules" 2, rooms/v12 "Authorisation rules" 3
func CheckStateIndependent(ev *pdu.Event, authEvents []*pdu.Event, rejected func(eventID string) bool) error {
	_, err := decideAuthEvents(ev, authEvents, rejected)
	return err
}

// decideAuthEvents returns the rule by which it rejects; noRule and nil if it does not.
func decideAuthEvents(ev *pdu.Event, authEvents []*pdu.Event, rejected func(eventID string) bool) (rule, error) {
	if ev.Type == pdu.TypeCreate {
		return noRule, nil
	}
	j := newJudge(ev, nil)
	// What the event says is judged and not what the caller found, who may well have looked
	// up each event only once.
	cited := make([]*pdu.Event, 0, pdu.MaxAuthEvents)
	for _, id := range ev.AuthEventIDs() {
		i := slices.IndexFunc(authEvents, func(a *pdu.Event) bool { return a.ID == id })
		if i < 0 {
			return noRule, fmt.Errorf("auth event %s of %s was not supplied", id, ev.ID)
		}
		cited = append(cited, authEvents[i])
	}

	for i, a := range cited {
		if slices.ContainsFunc(cited[:i], func(b *pdu.Event) bool {
			return a.ID == b.ID || a.IsState() && b.Is(a.Type, *a.StateKey)
		}) {
			return j.reject(authEventsDuplicate, "auth_events has two events for "+a.Type)
		}
	}
	required := Required(j.v, Header{Type: ev.Type, StateKey: ev.StateKey, Sender: ev.Sender, Content: ev.Content()})
	for _, a := range cited {
		if !a.IsState() || !slices.Contains(required, StateKeyTuple{a.Type, *a.StateKey}) {
			return j.reject(authEventsUnexpected, "auth_events has an event that does not belong there: "+a.Type)
		}
	}
	for _, a := range cited {
		if rejected != nil && rejected(a.ID) {
			return j.reject(authEventsRejected, "auth_events has a rejected event: "+a.Type)
		}
	}
	if !j.v.RoomIDIsCreateHash && !slices.ContainsFunc(cited, func(a *pdu.Event) bool { return a.Is(pdu.TypeCreate, "") }) {
		return j.reject(authEventsNoCreate, "auth_events lacks the create event")
	}
	for _, a := range cited {
		if a.RoomID != ev.RoomID {
			return j.reject(authEventsRoomID, "auth_events has an event of another room: "+a.Type)
		}
	}
	return noRule, nil
}
