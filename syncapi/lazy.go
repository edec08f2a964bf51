package syncapi

import (
	"context"
	"slices"
	"sync"

	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/roomserver/snapshot"
)

// lazyCache remembers which membership events a device was sent, so that lazy loading sends each once
// (client-server API v1.19, "Lazy-loading room members"). Losing it costs repetition only.
type lazyCache struct {
	mu      sync.Mutex
	devices map[deviceRoom]*sentMembers
	entries int
}

// sentMembers are the memberships of a room that a device was sent.
type sentMembers struct {
	// whole tells that these are all: they go back to the answer in which the room was new to the device.
	whole  bool
	byUser map[string]sentMember
}

// sentMember is a membership event that a device was sent, in the answer up to pos.
type sentMember struct{ nid, pos int64 }

// deviceRoom is a room as one device sees it.
type deviceRoom struct {
	user, device string
	room         int64
}

// maxLazyEntries bounds the memberships remembered, about 100 bytes each.
const maxLazyEntries = 200_000

func newLazyCache() *lazyCache { return &lazyCache{devices: map[deviceRoom]*sentMembers{}} }

// begin makes the device know no member of the room, which is new to it.
func (c *lazyCache) begin(k deviceRoom) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dropLocked(k)
	c.makeLocked(k).whole = true
}

func (c *lazyCache) dropLocked(k deviceRoom) {
	if m := c.devices[k]; m != nil {
		c.entries -= 1 + len(m.byUser)
		delete(c.devices, k)
	}
}

// makeLocked makes room for what a device knows of a room.
func (c *lazyCache) makeLocked(k deviceRoom) *sentMembers {
	m := &sentMembers{byUser: map[string]sentMember{}}
	c.devices[k] = m
	c.entries++
	return m
}

// knows tells whether the device has this membership event of a user: it was in an answer that the device has
// acknowledged by a token of position since. One in an answer that was lost is sent again.
func (c *lazyCache) knows(k deviceRoom, user string, nid, since int64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	room := c.devices[k]
	if room == nil {
		return false
	}
	m := room.byUser[user]
	return m.nid == nid && m.pos <= since
}

// knowsUser tells whether the device was sent any membership event of a user. If it is not known any more whom it was
// sent, that is not sure.
func (c *lazyCache) knowsUser(k deviceRoom, user string) (knows, sure bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	room := c.devices[k]
	if room == nil {
		return false, false
	}
	_, knows = room.byUser[user]
	return knows, knows || room.whole
}

// sent notes that the device is sent the membership event of a user, in an answer up to pos.
func (c *lazyCache) sent(k deviceRoom, user string, nid, pos int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.entries >= maxLazyEntries {
		for other := range c.devices {
			if c.dropLocked(other); c.entries < maxLazyEntries*9/10 {
				break
			}
		}
	}
	m := c.devices[k]
	if m == nil {
		m = c.makeLocked(k)
	}
	old, ok := m.byUser[user]
	if !ok {
		c.entries++
	}
	if old.nid != nid || pos < old.pos {
		m.byUser[user] = sentMember{nid, pos}
	}
}

// lazyLoad keeps of the membership events those of the timeline's senders, of the summary's heroes and the user's own, and
// adds those that the device was not sent before (client-server API v1.19, "Lazy-loading room members").
func (p *roomPart) lazyLoad(ctx context.Context, start, end snapshot.Ref, inTimeline map[stateKey]*roomserver.Event) error {
	l := p.look
	known := deviceRoom{l.user, l.device, p.room.NID}
	if p.fresh && !p.again {
		l.api.lazy.begin(known)
	}
	wanted := p.wantedMembers()
	had := map[string]bool{}
	p.state = keep(p.state, func(e *roomserver.Event) bool {
		if e.Type != memberType {
			return true
		}
		if !wanted[*e.StateKey] {
			knows, sure := l.api.lazy.knowsUser(known, *e.StateKey)
			changed := !l.fullState && !p.again || e.Anchor > p.from
			if !knows && (sure || !changed) {
				return false
			}
		}
		had[*e.StateKey] = true
		l.api.lazy.sent(known, *e.StateKey, e.NID, l.upTo)
		return true
	})
	for user := range wanted {
		if had[user] {
			continue
		}
		at := end
		if inTimeline[stateKey{memberType, user}] != nil {
			at = start
		}
		e, err := l.api.memberOf(ctx, p.room, at, user, p.timeline)
		if err != nil {
			return err
		}
		if e == nil || !l.filter.Room.State.IncludeRedundantMembers && l.api.lazy.knows(known, user, e.NID, l.since.Pos) {
			continue
		}
		l.api.lazy.sent(known, user, e.NID, l.upTo)
		p.state = append(slices.Clip(p.state), e)
	}
	for _, e := range p.timeline {
		if e.Type == memberType && e.IsState() {
			l.api.lazy.sent(known, *e.StateKey, e.NID, l.upTo)
		}
	}
	return nil
}

// wantedMembers are the users whose membership the client needs for this part.
func (p *roomPart) wantedMembers() map[string]bool {
	wanted := map[string]bool{}
	if p.fresh {
		wanted[p.look.user] = true
	}
	for _, user := range p.heroes() {
		wanted[user] = true
	}
	for _, e := range p.timeline {
		wanted[e.Sender] = true
		// With state_after, the timeline changes no state.
		if p.look.stateAfter && e.Type == memberType && e.IsState() {
			wanted[*e.StateKey] = true
		}
	}
	return wanted
}
