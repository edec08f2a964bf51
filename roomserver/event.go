package roomserver

import (
	"encoding/base64"
	"strings"
	"sync/atomic"

	"github.com/myelin-im/myelin/internal/cache"
	"github.com/myelin-im/myelin/roomserver/authchain"
	"github.com/myelin-im/myelin/roomserver/pdu"
	"github.com/myelin-im/myelin/roomserver/snapshot"
)

// Flags of a stored event.
const (
	// flagRedacted: a redaction applies to the event; readers see its redacted form.
	flagRedacted = 1 << iota
	// flagRejected: the event failed authorisation; it never counts for anything.
	flagRejected
	// flagSoftFailed: the event passed all checks but the one against the current state.
	flagSoftFailed
	// flagOutlier: known only as part of an auth chain or of someone else's state.
	flagOutlier
	// flagHashRedacted: the content hash did not match when the event arrived, so only its
	// redacted form was kept.
	flagHashRedacted
	// flagGiven: the state before the event is what another server said it was, because this server did not know
	// all of its parents.
	flagGiven
	// flagRelayed: an event of another server's user that this server passes on to the room, because it came
	// here as the answer to a template.
	flagRelayed
	// flagPartial: the states around the event were computed from one without most members (MSC3902). The index
	// events_partial names its value, 128.
	flagPartial
	// flagBrought: another server brought this event of a local user into the room.
	flagBrought
)

// Event is an event as this server holds it: the PDU and its place in the room. It is immutable once
// it is durable; a redaction replaces it by another value (Server.applyRedaction).
type Event struct {
	*pdu.Event
	// NID is the event's number in the database, always positive.
	NID int64
	// RoomNID is the number of its room.
	RoomNID int64
	// Anchor and Sub are its place in the room's history order; Anchor is 0 for events outside
	// the timeline (outliers, soft-failed and rejected ones).
	Anchor, Sub int64
	// StateBefore is the root of the room's state before the event; StateAfter after it.
	StateBefore, StateAfter snapshot.Ref
	// TxnDevice and TxnID are the local device that sent the event and the transaction
	// id that it gave, or empty.
	TxnDevice, TxnID string
	// DelayID is the id by which a local sender knew the event before it was sent, or empty (MSC4140).
	DelayID string

	flags     int64
	redaction *Event
	relation  *Relation     // of a redacted event: what it had
	auth      []int64       // nids of the auth events, and
	chain     authchain.Row // place in the index of auth chains, and
	offset    int           // position within its unit (0: none), and
	stored    bool          // has a row as an outlier, while the event is being written
	rendered  atomic.Pointer[rendering]
}

// Token is the event's place in the room's history order.
func (e *Event) Token() HistoryToken { return HistoryToken{e.Anchor, e.Sub} }

// Rejected tells that the event failed authorisation.
func (e *Event) Rejected() bool { return e.flags&flagRejected != 0 }

// SoftFailed tells that the event was refused against the current state only.
func (e *Event) SoftFailed() bool { return e.flags&flagSoftFailed != 0 }

// Outlier tells that the event has neither state nor a place in the timeline.
func (e *Event) Outlier() bool { return e.flags&flagOutlier != 0 }

// Relayed tells that this server was chosen to bring the event into the room, so that it has to send it to the other
// servers although its sender is not local (send_join, send_leave, send_knock).
func (e *Event) Relayed() bool { return e.flags&flagRelayed != 0 }

// Brought tells that another server brought the event of a local user into the room, and sends it to the others: the one
// through which this server entered the room.
func (e *Event) Brought() bool { return e.flags&(flagGiven|flagBrought) != 0 }

// redactedBy is e as readers see it after a redaction.
func (e *Event) redactedBy(by *Event) *Event {
	relation := e.Relation()
	if by != nil && by.redaction != nil {
		by = by.redactedBy(nil) // no chains, which could be loops
	}
	return &Event{
		Event: e.Redact(), NID: e.NID, RoomNID: e.RoomNID, Anchor: e.Anchor, Sub: e.Sub,
		StateBefore: e.StateBefore, StateAfter: e.StateAfter, TxnDevice: e.TxnDevice, TxnID: e.TxnID, DelayID: e.DelayID,
		flags: e.flags | flagRedacted, redaction: by, relation: &relation,
	}
}

// cost estimates the memory that a cached event holds, in bytes.
func (e *Event) cost() int { return len(e.JSON())*2 + 600 + cache.Overhead }

// eventKey is the form in which event ids are stored: the 32 bytes of the hash where the id is
// one, which halves the largest index of the database, else the id itself.
func eventKey(id string) []byte {
	if len(id) == 44 && id[0] == '$' && !strings.ContainsRune(id, ':') {
		var out [32]byte
		enc := base64.RawURLEncoding
		if strings.ContainsAny(id, "+/") {
			enc = base64.RawStdEncoding
		}
		if n, err := enc.Strict().Decode(out[:], []byte(id[1:])); err == nil && n == 32 {
			return out[:]
		}
	}
	return []byte(id)
}

// eventIDFromKey undoes eventKey for a room of version v.
func eventIDFromKey(v *pdu.Version, key []byte) string {
	if len(key) != 32 || v.EventFormat == 1 {
		return string(key)
	}
	enc := base64.RawURLEncoding
	if v.ID == "3" {
		enc = base64.RawStdEncoding
	}
	id := [44]byte{'$'}
	enc.Encode(id[1:], key)
	return string(id[:])
}

// localTxn encodes for an event's row the device and transaction id of a local client or, which has no NUL, the id of a
// delayed event.
func (e *Event) localTxn() []byte {
	switch {
	case e.TxnID != "":
		return []byte(e.TxnDevice + "\x00" + e.TxnID)
	case e.DelayID != "":
		return []byte(e.DelayID)
	}
	return nil
}
