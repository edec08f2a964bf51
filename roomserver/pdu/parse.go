package pdu

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"unicode/utf8"

	"github.com/myelin-im/myelin/internal/canonicaljson"
	"github.com/myelin-im/myelin/internal/signing"
)

// Limits of events.
//
// spec: client-server-api v1.19 "Size limits", server-server-api "PDUs"
const (
	// MaxSize is the largest event, in bytes of Event.JSON.
	MaxSize = 65536
	// MaxFieldSize is the largest sender, room_id, event_id, type and state_key,
	// in bytes.
	MaxFieldSize = 255
	// MaxPrevEvents is the largest number of prev_events.
	MaxPrevEvents = 20
	// MaxAuthEvents is the largest number of auth_events.
	MaxAuthEvents = 10
	// MaxDepth is the largest depth of version 6 and later.
	MaxDepth = 1<<53 - 1

	// maxRawSize is how much of an event is looked at before it is known how
	// large its canonical form without unsigned is.
	maxRawSize = 512 << 10
)

var (
	// ErrTooLarge is wrapped by errors about an event or a field of it that
	// exceeds the size limits.
	ErrTooLarge = errors.New("event too large")
	// ErrBadJSON is wrapped by errors about an event that is not JSON, or not
	// canonical JSON where the room version demands it.
	ErrBadJSON = errors.New("event is not canonical JSON")
	// ErrFormat is wrapped by errors about an event that lacks required members
	// or has malformed ones.
	ErrFormat = errors.New("event does not have the format of its room version")
)

// fields are the members of an event that have a meaning; nil where missing.
type fields struct {
	authEvents, content, depth, eventID, hashes, originServerTS, prevEvents,
	redacts, roomID, sender, signatures, stateKey, sticky, typ []byte
}

func split(event []byte) (f fields) {
	for w := canonicaljson.Walk(event); w.Next(); {
		switch string(w.Name) {
		case "auth_events":
			f.authEvents = w.Value
		case "content":
			f.content = w.Value
		case "depth":
			f.depth = w.Value
		case "event_id":
			f.eventID = w.Value
		case "hashes":
			f.hashes = w.Value
		case stickyKey:
			f.sticky = w.Value
		case "origin_server_ts":
			f.originServerTS = w.Value
		case "prev_events":
			f.prevEvents = w.Value
		case "redacts":
			f.redacts = w.Value
		case "room_id":
			f.roomID = w.Value
		case "sender":
			f.sender = w.Value
		case "signatures":
			f.signatures = w.Value
		case "state_key":
			f.stateKey = w.Value
		case "type":
			f.typ = w.Value
		}
	}
	return f
}

// Parse reads an event that another server sent. It checks everything that can
// be checked about the event alone but its signatures, computes the event ID
// and drops unsigned. If the content hash does not match, the redacted form is
// returned, as the specification demands, and Redacted says so. raw is not
// kept. The error wraps ErrTooLarge, ErrBadJSON or ErrFormat.
func Parse(v *Version, raw []byte) (*Event, error) {
	if len(raw) > maxRawSize {
		return nil, fmt.Errorf("%w: %d bytes", ErrTooLarge, len(raw))
	}
	canon, err := canonicaljson.Canonical(raw, v.jsonMode())
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBadJSON, err)
	}
	if canon[0] != '{' {
		return nil, fmt.Errorf("%w: not an object", ErrFormat)
	}
	own := appendWithout(make([]byte, 0, min(len(canon), MaxSize+1)), canon, "unsigned")
	if len(own) > MaxSize {
		return nil, fmt.Errorf("%w: %d bytes", ErrTooLarge, len(own))
	}
	f := split(own)
	e, err := decode(v, own, &f)
	if err != nil {
		return nil, err
	}
	intact, err := checkContentHash(own, f.hashes)
	if err != nil {
		return nil, err
	}
	e.setID(&f)
	if err := e.check(&f); err != nil {
		return nil, err
	}
	if !intact {
		return e.Redact(), nil
	}
	return e, nil
}

// FromStore restores an event from the JSON, ID and Redacted of a valid event. It hashes and checks nothing, and keeps raw, which nobody may
// change any more. An error means that the stored bytes are corrupt.
func FromStore(v *Version, raw []byte, id string, redacted bool) (*Event, error) {
	f := split(raw)
	e, err := decode(v, raw, &f)
	if err != nil {
		return nil, fmt.Errorf("restore event %s: %w", id, err)
	}
	e.ID, e.Redacted = id, redacted
	e.deriveRoomID()
	return e, nil
}

// decode reads the members of canonical JSON into an event without ID.
func decode(v *Version, own []byte, f *fields) (*Event, error) {
	e := &Event{version: v, json: own, content: f.content, signatures: f.signatures}
	for _, member := range [...]struct {
		name     string
		token    []byte
		into     *string
		optional bool
	}{
		{"type", f.typ, &e.Type, false},
		{"sender", f.sender, &e.Sender, false},
		{"room_id", f.roomID, &e.RoomID, v.RoomIDIsCreateHash},
		{"state_key", f.stateKey, &e.stateKey, true},
	} {
		s, ok := text(member.token)
		if !ok && (member.token != nil || !member.optional) {
			return nil, fmt.Errorf("%w: %s is no string", ErrFormat, member.name)
		}
		*member.into = s
	}
	if f.stateKey != nil {
		e.StateKey = &e.stateKey
	}
	e.carriesRoomID = f.roomID != nil
	e.sticky = stickyOf(f.sticky)

	var ok bool
	if e.Depth, ok = integer(f.depth); !ok {
		return nil, fmt.Errorf("%w: depth is no integer", ErrFormat)
	}
	if e.OriginServerTS, ok = integer(f.originServerTS); !ok {
		return nil, fmt.Errorf("%w: origin_server_ts is no integer", ErrFormat)
	}
	if len(f.content) == 0 || f.content[0] != '{' {
		return nil, fmt.Errorf("%w: content is no object", ErrFormat)
	}
	if e.IsState() && e.Type == TypeMember {
		e.membership, _ = e.ContentString("membership")
	}
	if err := e.decodeRefs(f); err != nil {
		return nil, err
	}
	return e, nil
}

// integer reads a canonical integer that fits in 64 bits.
func integer(token []byte) (n int64, ok bool) {
	if len(token) == 0 || len(token) > 20 {
		return 0, false
	}
	n, err := strconv.ParseInt(string(token), 10, 64)
	return n, err == nil
}

// decodeRefs reads prev_events and auth_events.
func (e *Event) decodeRefs(f *fields) error {
	var all [MaxPrevEvents + MaxAuthEvents]string
	list := all[:0]
	n := 0
	for w := canonicaljson.Walk(f.prevEvents); w.Next(); n++ {
		id, ok := refID(e.version, w.Value)
		if !ok || n == MaxPrevEvents {
			return fmt.Errorf("%w: prev_events", ErrFormat)
		}
		if !slices.Contains(list, id) {
			list = append(list, id)
		}
	}
	e.prevs, n = len(list), 0
	for w := canonicaljson.Walk(f.authEvents); w.Next(); n++ {
		id, ok := refID(e.version, w.Value)
		if !ok || n == MaxAuthEvents {
			return fmt.Errorf("%w: auth_events", ErrFormat)
		}
		list = append(list, id)
	}
	if !isArray(f.prevEvents) || !isArray(f.authEvents) {
		return fmt.Errorf("%w: prev_events and auth_events are not both arrays", ErrFormat)
	}
	e.refs = slices.Clone(list)
	return nil
}

func isArray(token []byte) bool { return len(token) > 0 && token[0] == '[' }

// refID reads one item of prev_events or auth_events: an ID, in event format 1
// an ID and an object with its hash.
func refID(v *Version, item []byte) (string, bool) {
	if v.EventFormat != 1 {
		return text(item)
	}
	if !isArray(item) {
		return "", false
	}
	w := canonicaljson.Walk(item)
	if !w.Next() {
		return "", false
	}
	id, ok := text(w.Value)
	return id, ok && w.Next() && w.Value[0] == '{' && !w.Next()
}

// setID takes the event ID from the event, or computes it.
func (e *Event) setID(f *fields) {
	if e.version.EventFormat == 1 {
		e.ID, _ = text(f.eventID)
		return
	}
	b := getBuffer()
	b.b = e.appendSigned(b.b)
	e.ID = eventID(e.version, b.b)
	b.put()
	e.deriveRoomID()
}

// deriveRoomID gives a version 12 create event its room ID.
func (e *Event) deriveRoomID() {
	if e.version.RoomIDIsCreateHash && !e.carriesRoomID && len(e.ID) > 0 {
		e.RoomID = "!" + e.ID[1:]
	}
}

// check judges the members of an event whose JSON and types are right.
func (e *Event) check(f *fields) error {
	if e.Depth < 0 {
		return fmt.Errorf("%w: negative depth", ErrFormat)
	}
	if len(f.signatures) == 0 || f.signatures[0] != '{' {
		return fmt.Errorf("%w: signatures is no object", ErrFormat)
	}
	if e.Type == TypeRedaction && !e.version.RedactsInContent && f.redacts != nil && f.redacts[0] != '"' {
		return fmt.Errorf("%w: redacts is no string", ErrFormat)
	}
	if err := e.checkSizes(); err != nil {
		return err
	}
	if !ValidUserID(e.Sender) {
		return fmt.Errorf("%w: sender is no user ID", ErrFormat)
	}
	if err := e.checkRoomID(); err != nil {
		return err
	}
	if e.version.EventFormat == 1 && !validID(e.ID, '$') {
		return fmt.Errorf("%w: event_id is no event ID", ErrFormat)
	}
	for _, id := range e.refs {
		if len(id) < 2 || len(id) > MaxFieldSize || id[0] != '$' {
			return fmt.Errorf("%w: prev_events or auth_events hold what is no event ID", ErrFormat)
		}
	}
	return nil
}

func (e *Event) checkRoomID() error {
	switch {
	case !e.version.RoomIDIsCreateHash:
		if !validID(e.RoomID, '!') {
			return fmt.Errorf("%w: room_id is no room ID", ErrFormat)
		}
	case e.Is(TypeCreate, ""):
		if e.carriesRoomID {
			return fmt.Errorf("%w: create event with a room_id", ErrFormat)
		}
	case !validHashID(e.RoomID, '!') || !e.carriesRoomID:
		return fmt.Errorf("%w: room_id is no room ID", ErrFormat)
	}
	return nil
}

// checkSizes applies the limits of single fields: of bytes, or where older
// servers counted so, of code points.
func (e *Event) checkSizes() error {
	for _, field := range [...]struct{ name, value string }{
		{"sender", e.Sender}, {"room_id", e.RoomID}, {"event_id", e.ID}, {"type", e.Type}, {"state_key", e.stateKey},
	} {
		if len(field.value) <= MaxFieldSize {
			continue
		}
		if e.version.StrictByteLimits || utf8.RuneCountInString(field.value) > MaxFieldSize {
			return fmt.Errorf("%w: %s has %d bytes", ErrTooLarge, field.name, len(field.value))
		}
	}
	return nil
}

// Oversized reports whether a field exceeds MaxFieldSize bytes, though not as
// many code points. Such events exist in rooms of versions 1 to 10, where
// servers used to count code points. They break the specification and must be
// rejected, but not dropped, since others hold them as rejected too and build
// on them.
func (e *Event) Oversized() bool {
	return max(len(e.Sender), len(e.RoomID), len(e.ID), len(e.Type), len(e.stateKey)) > MaxFieldSize
}

// checkContentHash compares the content hash. An event whose hashes cannot be
// read is malformed.
func checkContentHash(event, hashes []byte) (intact bool, err error) {
	if len(hashes) == 0 || hashes[0] != '{' {
		return false, fmt.Errorf("%w: hashes is no object", ErrFormat)
	}
	encoded, ok := text(canonicaljson.Member(hashes, "sha256"))
	if !ok {
		return false, fmt.Errorf("%w: hashes has no sha256", ErrFormat)
	}
	want, err := signing.DecodeBase64(encoded)
	if err != nil {
		return false, fmt.Errorf("%w: hashes.sha256: %w", ErrFormat, err)
	}
	got := contentHash(event)
	return bytes.Equal(want, got[:]), nil
}
