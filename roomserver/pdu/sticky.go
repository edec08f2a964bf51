package pdu

import (
	"strconv"

	"github.com/myelin-im/myelin/internal/canonicaljson"
)

// MaxStickyMS is how long an event can be sticky, in milliseconds (MSC4354).
const MaxStickyMS = 60 * 60 * 1000

// stickyKey is the member that makes an event sticky, by the name that it has while MSC4354 is unstable. Redaction drops
// it.
const stickyKey = "msc4354_sticky"

// Sticky tells whether the event is sticky, and for how many milliseconds from the time when it was sent.
func (e *Event) Sticky() (ms int64, ok bool) { return e.sticky - 1, e.sticky > 0 }

// StickyUntil is the time at which an event that was received at another one ceases to be sticky, both in milliseconds;
// 0 for one that is not. Its own time counts only if it is not in the future.
func (e *Event) StickyUntil(received int64) int64 {
	if e.sticky == 0 {
		return 0
	}
	return min(received, e.OriginServerTS) + e.sticky - 1
}

// stickyOf reads the member: its duration plus one, 0 if it has no valid one.
func stickyOf(token []byte) int64 {
	if len(token) == 0 || token[0] != '{' {
		return 0
	}
	ms, ok := integer(canonicaljson.Member(token, "duration_ms"))
	if !ok || ms < 0 || ms > MaxStickyMS {
		return 0
	}
	return ms + 1
}

func appendSticky(dst []byte, ms int64) []byte {
	dst = append(append(append(dst, `,"`...), stickyKey...), `":{"duration_ms":`...)
	return append(strconv.AppendInt(dst, ms, 10), '}')
}
