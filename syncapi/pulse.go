package syncapi

import "time"

// pulse bounds how often the members of one room are woken for receipts and typing. In a large room, every member sends a
// receipt for every message, and each receipt concerns every member: without a bound, a message would make as many answers
// as the square of the members.
type pulse struct {
	next    time.Time // not to be woken again before
	waiting interests // what they are to be woken for then
}

// allRooms stands for a room in which everyone is.
const allRooms = 0

const (
	// pulsePause is how long a room rests after a pulse for each of its local members, maxPulsePause at most.
	pulsePause    = 5 * time.Millisecond
	maxPulsePause = time.Second
	// maxPulses is from how many rooms on those that rest are forgotten.
	maxPulses = 1000
)

// pulseLocked wakes the members of a room that wait for such a thing, at once if none of it came of late.
func (t *tracker) pulseLocked(nid int64, what interests) {
	if len(t.waiters) == 0 {
		return
	}
	now := time.Now()
	p := t.pulses[nid]
	switch {
	case p != nil && p.waiting != 0:
		p.waiting |= what
	case p != nil && now.Before(p.next):
		p.waiting = what
		time.AfterFunc(p.next.Sub(now), func() { t.beat(nid) })
	default:
		t.beatLocked(nid, what, now)
	}
}

// beat wakes for what has waited.
func (t *tracker) beat(nid int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p := t.pulses[nid]; p != nil && p.waiting != 0 {
		t.beatLocked(nid, p.waiting, time.Now())
	}
}

func (t *tracker) beatLocked(nid int64, what interests, now time.Time) {
	t.wakeRoomLocked(nid, what)
	if len(t.pulses) >= maxPulses {
		for other, p := range t.pulses {
			if p.waiting == 0 && now.After(p.next) {
				delete(t.pulses, other)
			}
		}
	}
	rest := maxPulsePause
	if nid != allRooms {
		rest = min(time.Duration(len(t.names))*pulsePause, maxPulsePause)
	}
	t.pulses[nid] = &pulse{next: now.Add(rest)}
}
