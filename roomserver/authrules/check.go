package authrules

import (
	"fmt"
	"strings"

	"github.com/myelin-im/myelin/internal/canonicaljson"
	"github.com/myelin-im/myelin/roomserver/pdu"
)

// Error says that the rules do not allow an event.
type Error struct {
	// Rule is the number of the deciding rule in the list of the event's room version, such as
	// "5.3.3"; Name is what this package calls that rule in all versions, such as "join.banned".
	Rule, Name string
	// Reason says in words why, and is fit for clients.
	Reason string
}

func (e *Error) Error() string { return "not authorised by rule " + e.Rule + ": " + e.Reason }

// State gives the state that an event is judged against.
type State interface {
	// Event returns the state event with a type and state key; nil, nil where there is none.
	Event(eventType, stateKey string) (*pdu.Event, error)
}

// EventList is the State made up by a list of state events, such as those that an event cites as
// its auth_events. It is meant for short lists. From room version 12 on, the room's create event
// must be added to the auth events.
type EventList []*pdu.Event

// Event returns the first event of the list with the type and state key.
func (l EventList) Event(eventType, stateKey string) (*pdu.Event, error) {
	for _, ev := range l {
		if ev.Is(eventType, stateKey) {
			return ev, nil
		}
	}
	return nil, nil
}

// Check decides whether the state st allows the event, by all rules of its room version but those
// that consider its auth_events (see CheckStateIndependent) and signatures (see
// pdu.Event.RequiredSigners).
//
// The result is nil if the event is allowed and an *Error if it is not. Any other error came from
// st, is wrapped, and decides nothing.
func Check(ev *pdu.Event, st State) error {
	_, err := decide(ev, st)
	return err
}

// judge is one event on trial.
type judge struct {
	ev       *pdu.Event
	v        *pdu.Version
	stateKey string // "" also where the event is not a state event
	st       State
	create   *pdu.Event // in the state; set by findCreate
}

func newJudge(ev *pdu.Event, st State) judge {
	j := judge{ev: ev, v: ev.Version(), st: st}
	if ev.StateKey != nil {
		j.stateKey = *ev.StateKey
	}
	return j
}

// decide is the list of rules. It returns the rule that decided; err is nil if it allows the event.
func decide(ev *pdu.Event, st State) (rule, error) {
	j := newJudge(ev, st)

	if ev.Type == pdu.TypeCreate {
		return j.checkCreate()
	}
	if r, err := j.findCreate(); err != nil {
		return r, err
	}
	if create := createOf(j.create); !create.federate && create.server != ev.SenderServer() {
		return j.reject(federateFalse, "the room is closed to users of other servers")
	}
	if ev.Type == pdu.TypeAliases && j.v.SpecialAliasAuth {
		return j.checkAliases()
	}
	if ev.Type == pdu.TypeMember {
		return j.checkMember()
	}

	membership, err := j.membership(ev.Sender)
	if err != nil {
		return noRule, err
	}
	if membership != MembershipJoin {
		return j.reject(senderNotJoined, "the sender is not in the room")
	}
	levels, err := j.levels()
	if err != nil {
		return noRule, err
	}
	level := levels.User(ev.Sender)
	if ev.Type == pdu.TypeThirdPartyInvite {
		if level < levels.Invite() {
			return j.reject(thirdPartyInviteLevel, "the sender's power level is too low to invite")
		}
		return thirdPartyInviteLevel, nil
	}
	if level < levels.Event(ev.Type, ev.IsState()) {
		return j.reject(requiredLevel, "the sender's power level is too low for events of this type")
	}
	if strings.HasPrefix(j.stateKey, "@") && j.stateKey != ev.Sender && !j.mayOwn(levels, level) {
		return j.reject(stateKeyOfOther, "the state key is another user's ID")
	}
	if ev.Type == pdu.TypePowerLevels {
		return j.checkPowerLevels(levels, level)
	}
	if ev.Type == pdu.TypeRedaction && j.v.RedactionAuth {
		return j.checkRedaction(levels, level)
	}
	return otherwiseAllow, nil
}

// mayOwn tells whether the room version lets the sender set state under a state key that begins with a user's ID.
func (j *judge) mayOwn(levels *Levels, level int64) bool {
	if !j.v.OwnedState {
		return false
	}
	owner := pdu.StateKeyOwner(j.stateKey)
	return owner != "" && (owner == j.ev.Sender || level > levels.User(owner))
}

func (j *judge) reject(r rule, reason string) (rule, error) {
	return r, &Error{Rule: r.number(j.v.Rules), Name: r.String(), Reason: reason}
}

// state returns a state event, or nil.
func (j *judge) state(eventType, stateKey string) (*pdu.Event, error) {
	ev, err := j.st.Event(eventType, stateKey)
	if err != nil {
		return nil, fmt.Errorf("look up %s to authorise %s: %w", eventType, j.ev.ID, err)
	}
	return ev, nil
}

// membership is a user's membership in the state; that of a user without one is leave.
func (j *judge) membership(userID string) (string, error) {
	ev, err := j.state(pdu.TypeMember, userID)
	if err != nil || ev == nil {
		return MembershipLeave, err
	}
	return ev.Membership(), nil
}

// levels are the power levels in the state.
func (j *judge) levels() (*Levels, error) {
	ev, err := j.state(pdu.TypePowerLevels, "")
	if err != nil {
		return nil, err
	}
	return PowerLevels(ev, j.create), nil
}

// checkCreate is the rule on m.room.create.
func (j *judge) checkCreate() (rule, error) {
	ev := j.ev
	if len(ev.PrevEventIDs()) > 0 {
		return j.reject(createPrevEvents, "a create event cannot follow other events")
	}
	if j.v.RoomIDIsCreateHash {
		if ev.CarriesRoomID() {
			return j.reject(createRoomID, "the create event has a room_id")
		}
	} else if server := pdu.ServerOf(ev.RoomID); server == "" || server != ev.SenderServer() {
		return j.reject(createRoomID, "the room ID is of another server than the sender")
	}
	if field := ev.ContentField("room_version"); field != nil {
		id, ok := text(field)
		if ok {
			_, ok = pdu.Lookup(id)
		}
		if !ok {
			return j.reject(createRoomVersion, "the room version is unknown")
		}
	}
	if !j.v.ImplicitCreator && ev.ContentField("creator") == nil {
		return j.reject(createCreator, "the create event names no creator")
	}
	if field := ev.ContentField("additional_creators"); j.v.CreatorsPrivileged && field != nil && !j.validCreators(field) {
		return j.reject(createAdditionalCreators, "additional_creators is not a list of user IDs")
	}
	return createAllow, nil
}

func (j *judge) validCreators(field []byte) bool {
	if field[0] != '[' {
		return false
	}
	for w := canonicaljson.Walk(field); w.Next(); {
		if id, ok := text(w.Value); !ok || !validUserID(j.v, id) {
			return false
		}
	}
	return true
}

// findCreate takes the create event from the state. Nothing is allowed without one: from version 12
// on this is the rule on the room ID, and before it that on auth_events, which hold the
// create event then.
func (j *judge) findCreate() (rule, error) {
	var err error
	if j.create, err = j.state(pdu.TypeCreate, ""); err != nil {
		return noRule, err
	}
	if j.v.RoomIDIsCreateHash {
		if j.create == nil || j.create.RoomID != j.ev.RoomID || j.create.CarriesRoomID() {
			return j.reject(roomIDNotCreate, "the room ID is not that of the room's create event")
		}
	} else if j.create == nil {
		return j.reject(authEventsNoCreate, "the room has no create event")
	}
	return noRule, nil
}

// checkAliases is the rule on m.room.aliases of versions 1 to 5.
func (j *judge) checkAliases() (rule, error) {
	if !j.ev.IsState() {
		return j.reject(aliasesNoStateKey, "aliases need a state key")
	}
	if j.stateKey != j.ev.SenderServer() {
		return j.reject(aliasesDomain, "the state key is not the sender's server")
	}
	return aliasesAllow, nil
}

// checkRedaction is the rule on m.room.redaction of versions 1 and 2.
func (j *judge) checkRedaction(levels *Levels, level int64) (rule, error) {
	if level >= levels.Redact() {
		return redactionLevel, nil
	}
	if server := pdu.ServerOf(j.ev.Redacts()); server != "" && server == pdu.ServerOf(j.ev.ID) {
		return redactionDomain, nil
	}
	return j.reject(redactionOtherwise, "the sender's power level is too low to redact")
}

// CanRedact decides whether an authorised redaction is to be applied to its target. levels are those
// before the redaction. From version 3 on the authorisation rules let any member redact
// anything, and a server applies only what this function allows; in versions 1 and 2 it repeats
// what the rules decided.
//
// spec: rooms/v3 "Handling redactions"; rooms/v1 "Authorisation rules" 11
func CanRedact(redaction, target *pdu.Event, levels *Levels) bool {
	if redaction.RoomID != target.RoomID {
		return false
	}
	if levels.User(redaction.Sender) >= levels.Redact() {
		return true
	}
	if redaction.Version().RedactionAuth {
		return pdu.ServerOf(redaction.ID) == pdu.ServerOf(target.ID)
	}
	return redaction.SenderServer() == target.SenderServer()
}
