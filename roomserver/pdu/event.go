package pdu

import (
	"encoding/json"
	"strings"
	"sync/atomic"
	"unsafe"

	"github.com/myelin-im/myelin/internal/canonicaljson"
)

// Event types that the format, redaction or authorisation know.
const (
	TypeCreate            = "m.room.create"
	TypeMember            = "m.room.member"
	TypePowerLevels       = "m.room.power_levels"
	TypeJoinRules         = "m.room.join_rules"
	TypeThirdPartyInvite  = "m.room.third_party_invite"
	TypeHistoryVisibility = "m.room.history_visibility"
	TypeRedaction         = "m.room.redaction"
	TypeAliases           = "m.room.aliases"
)

// Event is one room event, made by Parse, FromStore or Version.Build. Nobody
// changes its fields.
type Event struct {
	ID string
	// RoomID of a version 12 create event is derived from its ID.
	RoomID string
	// Sender is the user ID of the sender.
	Sender string
	Type   string
	// StateKey is nil for events that are not state.
	StateKey *string
	// Depth is what the sender says about the distance to the create event: 0 to
	// MaxDepth, in versions 1 to 5 to 2^63-1. Nobody can rely on it.
	Depth int64
	// OriginServerTS is when the sender says the event was sent, in milliseconds
	// since 1970. It can be any integer.
	OriginServerTS int64
	// Redacted says that only the redacted form is here.
	Redacted bool

	version             *Version
	json                []byte // canonical, without unsigned
	content, signatures []byte // parts of json
	stateKey            string // what StateKey points to
	membership          string // of member state events
	refs                []string
	prevs               int // refs[:prevs] are prev_events, the rest auth_events
	carriesRoomID       bool
	sticky              int64 // how long the event is sticky, in milliseconds, plus one; 0: it is not

	cached atomic.Pointer[any]
}

// Version is the version of the event's room.
func (e *Event) Version() *Version { return e.version }

// CarriesRoomID reports whether the JSON has a room_id. A version 12 event of
// type m.room.create that does is not authorised.
func (e *Event) CarriesRoomID() bool { return e.carriesRoomID }

// IsState reports whether the event has a state key.
func (e *Event) IsState() bool { return e.StateKey != nil }

// Is reports whether the event is a state event with this type and state key.
func (e *Event) Is(typ, stateKey string) bool {
	return e.StateKey != nil && e.Type == typ && *e.StateKey == stateKey
}

// Content is the canonical JSON object of the content.
func (e *Event) Content() json.RawMessage { return e.content[:len(e.content):len(e.content)] }

// ContentField returns the canonical JSON of a top-level member of the content,
// nil if there is none. The name must need no escapes.
func (e *Event) ContentField(name string) json.RawMessage {
	return canonicaljson.Member(e.content, name)
}

// ContentString returns a member of the content that is a string.
func (e *Event) ContentString(name string) (value string, ok bool) {
	return text(canonicaljson.Member(e.content, name))
}

// PrevEventIDs are the parents in the room's graph, at most MaxPrevEvents, in
// the event's order without repetitions.
func (e *Event) PrevEventIDs() []string { return e.refs[:e.prevs:e.prevs] }

// AuthEventIDs are the events that the sender says authorise this one, at most
// MaxAuthEvents, in the event's order. Repetitions are kept, because the
// authorisation rules refuse them.
func (e *Event) AuthEventIDs() []string { return e.refs[e.prevs:len(e.refs):len(e.refs)] }

// Redacts is the ID of the event that an m.room.redaction event redacts, "" if
// it names none or is of another type.
func (e *Event) Redacts() string {
	if e.Type != TypeRedaction {
		return ""
	}
	from := e.json
	if e.version.RedactsInContent {
		from = e.content
	}
	id, _ := text(canonicaljson.Member(from, "redacts"))
	return id
}

// JSON is the event as it is signed and sent to other servers: canonical, all
// members but unsigned.
func (e *Event) JSON() []byte { return e.json[:len(e.json):len(e.json)] }

// Membership is content.membership of an m.room.member state event, "" if it is
// missing or no string, and for other events.
func (e *Event) Membership() string { return e.membership }

// JoinRule is content.join_rule, "" if it is missing or no string.
func (e *Event) JoinRule() string {
	rule, _ := e.ContentString("join_rule")
	return rule
}

// AuthorisedVia is content.join_authorised_via_users_server: the user whose
// server vouches for a restricted join. present is also true if it is no
// string, which is then no user's ID.
func (e *Event) AuthorisedVia() (userID string, present bool) {
	field := e.ContentField("join_authorised_via_users_server")
	userID, _ = text(field)
	return userID, field != nil
}

// Creators are the creators that a create event names: its content.creator up
// to version 10, its sender from version 11, and content.additional_creators as
// well in version 12 (those that are strings).
func (e *Event) Creators() []string {
	if !e.version.ImplicitCreator {
		creator, _ := e.ContentString("creator")
		return []string{creator}
	}
	list := []string{e.Sender}
	if e.version.CreatorsPrivileged {
		for w := canonicaljson.Walk(e.ContentField("additional_creators")); w.Next(); {
			if id, ok := text(w.Value); ok {
				list = append(list, id)
			}
		}
	}
	return list
}

// Cached returns the value that build made of this event the first time. There
// is one slot for each event; it belongs to the authorisation rules, which keep
// the parsed content there. Concurrent first calls may both run build; all get
// the same value. The value must be immutable.
func (e *Event) Cached(build func(*Event) any) any {
	if value := e.cached.Load(); value != nil {
		return *value
	}
	value := build(e)
	if !e.cached.CompareAndSwap(nil, &value) {
		return *e.cached.Load()
	}
	return value
}

// SenderServer is the server name in the sender's ID.
func (e *Event) SenderServer() string { return ServerOf(e.Sender) }

// ServerOf returns the server name of a user ID, or of a room ID, room alias or
// event ID that has one: what follows the first colon. "" if there is none.
func ServerOf(id string) string {
	_, server, _ := strings.Cut(id, ":")
	return server
}

// text decodes a canonical JSON string without copying it where it has no
// escapes. ok is false for anything else.
func text(token []byte) (s string, ok bool) {
	b, ok := canonicaljson.DecodeString(token)
	if !ok || len(b) == 0 {
		return "", ok
	}
	// The bytes are an event's JSON, which nothing changes, or freshly decoded.
	return unsafe.String(&b[0], len(b)), true
}
