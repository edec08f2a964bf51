package pdu

import (
	"strconv"

	"github.com/myelin-im/myelin/internal/canonicaljson"
)

// ClientFormat chooses between the ways in which clients see events.
type ClientFormat uint8

const (
	// ClientFull is a whole client event.
	ClientFull ClientFormat = iota
	// ClientSync is that without room_id, as in the rooms of /sync.
	ClientSync
	// ClientStripped is stripped state: content, sender, state_key and type.
	ClientStripped
)

// AppendClient appends the event as clients see it, without unsigned. The last
// byte is the closing brace of an object that is never empty, so a caller that
// has unsigned data overwrites it:
//
//	b = e.AppendClient(b, pdu.ClientSync)
//	b = append(b[:len(b)-1], `,"unsigned":{…}}`...)
//
// A redaction names its target both in the event and in its content, whichever
// of them the room version knows, for older and newer clients.
//
// spec: client-server-api v1.19 "Room event format", rooms/v11 "Moving the
// redacts property"
func (e *Event) AppendClient(dst []byte, format ClientFormat) []byte {
	redacts := e.Redacts()
	dst = append(dst, `{"content":`...)
	if redacts != "" && !e.version.RedactsInContent {
		dst = appendWithRedacts(dst, e.content, redacts)
	} else {
		dst = append(dst, e.content...)
	}
	if format != ClientStripped {
		dst = canonicaljson.AppendString(append(dst, `,"event_id":`...), e.id)
		dst = strconv.AppendInt(append(dst, `,"origin_server_ts":`...), e.originServerTS, 10)
		if redacts != "" {
			dst = canonicaljson.AppendString(append(dst, `,"redacts":`...), redacts)
		}
		if format == ClientFull {
			dst = canonicaljson.AppendString(append(dst, `,"room_id":`...), e.roomID)
		}
	}
	dst = canonicaljson.AppendString(append(dst, `,"sender":`...), e.sender)
	if e.isState {
		dst = canonicaljson.AppendString(append(dst, `,"state_key":`...), e.stateKey)
	}
	dst = canonicaljson.AppendString(append(dst, `,"type":`...), e.typ)
	return append(dst, '}')
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
