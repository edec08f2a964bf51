package pdu

import (
	"strconv"

	"github.com/myelin-im/myelin/internal/canonicaljson"
)

// AppendClient appends what all readers see alike of the event as a client
// event: everything but room_id and unsigned, and without the closing brace.
// The caller adds the members that it wants and closes the object:
//
//	b = e.AppendClient(b)
//	b = append(b, `,"room_id":"!…","unsigned":{…}}`...)
//
// A redaction names its target both in the event and in its content, whichever
// of them the room version knows, for older and newer clients.
//
// spec: client-server-api v1.19 "Room event format", rooms/v11 "Moving the
// redacts property"
func (e *Event) AppendClient(dst []byte) []byte {
	redacts := e.Redacts()
	dst = e.appendClientContent(append(dst, '{'), redacts)
	dst = canonicaljson.AppendString(append(dst, `,"event_id":`...), e.ID)
	if ms, ok := e.Sticky(); ok {
		dst = appendSticky(dst, ms)
	}
	dst = strconv.AppendInt(append(dst, `,"origin_server_ts":`...), e.OriginServerTS, 10)
	if redacts != "" {
		dst = canonicaljson.AppendString(append(dst, `,"redacts":`...), redacts)
	}
	return e.appendEnd(dst)
}

// AppendStripped appends the event as stripped state, a whole object. m.room.create is given with all its members
// (MSC4311), so that clients can check the room ID.
//
// spec: client-server-api v1.19 "Stripped state"
func (e *Event) AppendStripped(dst []byte) []byte {
	if e.Is(TypeCreate, "") {
		return append(e.AppendClient(dst), '}')
	}
	dst = e.appendClientContent(append(dst, '{'), e.Redacts())
	return append(e.appendEnd(dst), '}')
}

func (e *Event) appendClientContent(dst []byte, redacts string) []byte {
	dst = append(dst, `"content":`...)
	if redacts != "" && !e.version.RedactsInContent {
		return appendWithRedacts(dst, e.content, redacts)
	}
	return append(dst, e.content...)
}

func (e *Event) appendEnd(dst []byte) []byte {
	dst = canonicaljson.AppendString(append(dst, `,"sender":`...), e.Sender)
	if e.IsState() {
		dst = canonicaljson.AppendString(append(dst, `,"state_key":`...), *e.StateKey)
	}
	return canonicaljson.AppendString(append(dst, `,"type":`...), e.Type)
}

// appendWithRedacts appends canonical content with its member redacts set.
func appendWithRedacts(dst, content []byte, redacts string) []byte {
	start := len(dst)
	dst = append(dst, '{')
	written := false
	write := func() {
		dst = canonicaljson.AppendString(appendMember(dst, start, []byte("redacts"), nil), redacts)
		written = true
	}
	for w := canonicaljson.Walk(content); w.Next(); {
		if name := string(w.Name); name == "redacts" {
			continue
		} else if name > "redacts" && !written {
			write()
		}
		dst = appendMember(dst, start, w.Name, w.Value)
	}
	if !written {
		write()
	}
	return append(dst, '}')
}
