package roomserver

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"slices"

	"github.com/myelin-im/myelin/internal/signing"
	"github.com/myelin-im/myelin/roomserver/pdu"
	"github.com/myelin-im/myelin/roomserver/snapshot"
	"github.com/myelin-im/myelin/storage"
)

// ErrInconsistent is wrapped by what CheckConsistency finds.
var ErrInconsistent = errors.New("inconsistent")

// maxProblems bounds what CheckConsistency reports; who finds more has one cause for most of it.
const maxProblems = 50

// CheckConsistency recomputes from the events what the tables of every room say and returns all differences,
// joined, nil if there are none. It reads every event and verifies its hash, id and, for those of local users,
// signature, so it takes long on a large server. Nothing may write meanwhile.
func (s *Server) CheckConsistency(ctx context.Context) error {
	ids, err := storage.ReadList[string](ctx, s.db, `SELECT room_id FROM rooms ORDER BY nid`)
	if err != nil {
		return fmt.Errorf("list rooms: %w", err)
	}
	var problems []error
	for _, id := range ids {
		room, err := s.Room(ctx, id)
		if err != nil {
			problems = append(problems, fmt.Errorf("%w: room %s cannot be loaded: %w", ErrInconsistent, id, err))
			continue
		}
		c := roomCheck{s: s, room: room, heads: map[string]int64{}, late: map[string]bool{}, cited: map[string]bool{}, behind: map[string][]string{}, after: map[string]snapshot.Ref{}}
		if err := c.run(ctx); err != nil {
			return errors.Join(append(problems, fmt.Errorf("check room %s: %w", id, err))...)
		}
		if problems = append(problems, c.problems...); len(problems) >= maxProblems {
			break
		}
	}
	return errors.Join(problems...)
}

// roomCheck is CheckConsistency for one room.
type roomCheck struct {
	s        *Server
	room     *Room
	problems []error

	late    map[string]bool         // the current forward extremities that backfilled events cite
	heads   map[string]int64        // anchors of those seen, in the graph, and cited by none of the others seen
	given   int64                   // last anchor of an event that arrived with a state of another server
	cited   map[string]bool         // cited as a parent, and not seen
	behind  map[string][]string     // parents of events that do not count
	after   map[string]snapshot.Ref // state after the events seen, of the last afterMemory
	last    int64                   // highest position of an event
	related relationSum             // of the relations that events have
	purged  bool                    // older events were purged
}

// afterMemory bounds roomCheck.after.
const afterMemory = 100_000

func (c *roomCheck) bad(format string, args ...any) {
	if len(c.problems) < maxProblems {
		c.problems = append(c.problems, fmt.Errorf("%w: room %s: %s", ErrInconsistent, c.room.ID, fmt.Sprintf(format, args...)))
	}
}

func (c *roomCheck) run(ctx context.Context) error {
	mark, err := c.s.Purged(ctx, c.room)
	if err != nil {
		return err
	}
	c.purged = mark.Before > 0
	for _, step := range []func(context.Context) error{c.events, c.order, c.head, c.stateLog, c.members, c.references, c.relations} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// events verifies every event by itself and the state around it.
func (c *roomCheck) events(ctx context.Context) error {
	const page = 500
	for after := int64(0); ; {
		// Not through the cache: what is checked is what is stored.
		var list []*Event
		err := c.s.db.Read(ctx, func(tx *storage.Tx) error {
			list = nil
			var r eventRow
			dest := r.dest()
			rows := tx.Query(`SELECT `+eventColumns+` FROM events WHERE room = $1 AND nid > $2 ORDER BY nid LIMIT $3`, c.room.NID, after, int64(page))
			for rows.Next() {
				rows.Scan(dest...)
				e, err := r.event(c.room)
				if err != nil {
					return errors.Join(err, rows.Close())
				}
				list = append(list, e)
			}
			return rows.Close()
		})
		if err != nil {
			return err
		}
		if len(list) == 0 {
			return nil
		}
		for _, e := range list {
			c.format(e)
			if err := c.state(ctx, e); err != nil {
				return fmt.Errorf("state around %s: %w", e.ID, err)
			}
			c.graph(e)
			c.relation(e)
		}
		after = list[len(list)-1].NID
	}
}

// format verifies an event's format, hash, id and signature.
func (c *roomCheck) format(e *Event) {
	p, err := pdu.Parse(c.room.Version, e.JSON())
	switch {
	case err != nil:
		c.bad("event %s does not parse: %v", e.ID, err)
		return
	case p.ID != e.ID:
		c.bad("event %s has the id %s by its content", e.ID, p.ID)
	case p.RoomID != c.room.ID:
		c.bad("event %s is of room %s", e.ID, p.RoomID)
	case p.Redacted && e.flags&flagHashRedacted == 0:
		c.bad("event %s: the content hash does not match", e.ID)
	case !bytes.Equal(p.JSON(), e.JSON()):
		c.bad("event %s is not stored in canonical form", e.ID)
	}
	if c.s.IsLocal(e.Sender) {
		if err := c.s.verifyOwn(p); err != nil {
			c.bad("event %s: %v", e.ID, err)
		}
	}
}

// verifyOwn checks that an event is signed with one of this server's keys.
func (s *Server) verifyOwn(p *pdu.Event) error {
	err := signing.ErrMissing
	for _, signature := range p.Signatures(s.name) {
		key, ok := s.old[signature.KeyID]
		if signature.KeyID == s.keyID {
			key, ok = s.key.Public().(ed25519.PublicKey), true
		}
		if !ok {
			continue
		}
		if err = p.VerifySignature(s.name, signature.KeyID, key); err == nil {
			return nil
		}
	}
	return err
}

// state checks what an event does to the state that its parents left.
func (c *roomCheck) state(ctx context.Context, e *Event) error {
	if e.Outlier() {
		return nil
	}
	if parents := e.PrevEventIDs(); len(parents) == 1 {
		before, ok := c.after[parents[0]]
		if !ok {
			parent, err := c.s.Event(ctx, c.room, parents[0])
			if err != nil && !errors.Is(err, ErrUnknownEvent) {
				return err
			}
			if ok = err == nil && !parent.Outlier(); ok {
				before = parent.StateAfter
			}
		}
		if ok && before != e.StateBefore && e.flags&flagGiven == 0 {
			c.bad("the state before %s is not the one after its only parent", e.ID)
		}
	}
	if len(c.after) >= afterMemory {
		clear(c.after)
	}
	c.after[e.ID] = e.StateAfter
	if !e.IsState() || e.Rejected() {
		if e.StateAfter != e.StateBefore {
			c.bad("event %s changes the state, which it may not", e.ID)
		}
		return nil
	}
	var changed []int64
	err := c.s.tree(c.room, e.StateBefore).Diff(ctx, e.StateAfter, func(_, new int64) error {
		changed = append(changed, new)
		return nil
	})
	if err != nil {
		return err
	}
	if !slices.Equal(changed, []int64{e.NID}) {
		c.bad("the state event %s (%d) changes the state to %v", e.ID, e.NID, changed)
	}
	nid, err := c.s.tree(c.room, e.StateAfter).Get(ctx, e.Type, *e.StateKey)
	if err == nil && nid != e.NID {
		c.bad("the state after %s does not have it in its place", e.ID)
	}
	return err
}

// graph keeps account of which events nothing follows.
func (c *roomCheck) graph(e *Event) {
	if e.Anchor == 0 { // outside of the timeline
		if !e.Outlier() {
			c.behind[e.ID] = e.PrevEventIDs()
		}
		return
	}
	c.last = max(c.last, e.Anchor)
	for _, id := range e.PrevEventIDs() {
		if e.Sub != 0 && slices.ContainsFunc(c.room.Head().Extremities, func(x *Event) bool { return x.ID == id }) {
			c.late[id] = true // until the next live event
		}
		if _, ok := c.heads[id]; ok {
			delete(c.heads, id)
		} else {
			c.cited[id] = true
		}
	}
	if !c.cited[e.ID] {
		c.heads[e.ID] = e.Anchor
	}
	if e.Sub == 0 && e.flags&flagGiven != 0 {
		c.given = max(c.given, e.Anchor)
	}
}

// order checks that the room's history has one order.
func (c *roomCheck) order(ctx context.Context) error {
	return c.s.db.Read(ctx, func(tx *storage.Tx) error {
		rows := tx.Query(`SELECT anchor, sub, count(*) FROM events WHERE room = $1 AND anchor IS NOT NULL
			GROUP BY anchor, sub HAVING count(*) > 1`, c.room.NID)
		var anchor, sub, n int64
		for rows.Next() {
			rows.Scan(&anchor, &sub, &n)
			c.bad("%d events are at (%d, %d)", n, anchor, sub)
		}
		return rows.Close()
	})
}

// followThrough finds what is followed only by way of events that do not count.
func (c *roomCheck) followThrough() {
	var front []string
	for id := range c.cited {
		front = append(front, c.behind[id]...)
	}
	for seen := map[string]bool{}; len(front) > 0; {
		id := front[0]
		if front = front[1:]; seen[id] {
			continue
		}
		seen[id] = true
		delete(c.heads, id)
		front = append(front, c.behind[id]...)
	}
}

// head compares the room's forward extremities, state and position with its events.
func (c *roomCheck) head(ctx context.Context) error {
	head := c.room.Head()
	c.followThrough()
	for _, e := range head.Extremities {
		if c.heads[e.ID] == 0 && !c.late[e.ID] {
			c.bad("the forward extremity %s is not the end of the graph", e.ID)
		}
		delete(c.heads, e.ID)
	}
	for id, anchor := range c.heads {
		if anchor < c.given {
			continue // it was left behind when the last local user left, or is behind a gap
		}
		c.bad("nothing follows %s, but it is no forward extremity", id)
	}
	if len(head.Extremities) == 1 && head.Extremities[0].StateAfter != head.State {
		c.bad("the current state is not the one after the only forward extremity")
	}
	if head.Pos < c.last || head.Pos > c.s.db.Head() {
		c.bad("the head is at %d, the last event at %d, the log at %d", head.Pos, c.last, c.s.db.Head())
	}
	create, err := c.s.StateEvent(ctx, c.room, head.State, pdu.TypeCreate, "")
	switch {
	case err != nil:
		return err
	case create == nil:
		c.bad("the current state has no m.room.create")
	default:
		if v, ok := create.ContentString("room_version"); ok && v != c.room.Version.ID || !ok && c.room.Version.ID != "1" {
			c.bad("the room is kept as version %s, but was created as version %q", c.room.Version.ID, v)
		}
	}
	return nil
}

// stateLog checks that the changes of the current state form one chain.
func (c *roomCheck) stateLog(ctx context.Context) error {
	var root int64
	err := c.s.db.Read(ctx, func(tx *storage.Tx) error {
		root = 0
		rows := tx.Query(`SELECT pos, old_root, new_root FROM state_log WHERE room = $1 ORDER BY pos`, c.room.NID)
		var pos, from, to int64
		for rows.Next() {
			rows.Scan(&pos, &from, &to)
			if from != root {
				c.bad("the change of state at %d does not continue the one before", pos)
			}
			root = to
		}
		return rows.Close()
	})
	if err == nil && snapshot.Ref(root) != c.room.Head().State {
		c.bad("the last change of state did not lead to the current state")
	}
	return err
}

// members compares the list of members with the current state.
func (c *roomCheck) members(ctx context.Context) error {
	events, err := c.s.StateEventsOfType(ctx, c.room, c.room.Head().State, pdu.TypeMember)
	if err != nil {
		return err
	}
	current := make(map[string]*Event, len(events))
	counts := map[string]int{}
	for _, e := range events {
		current[*e.StateKey] = e
		counts[e.Membership()]++
	}
	err = c.s.db.Read(ctx, func(tx *storage.Tx) error {
		rest := len(current)
		rows := tx.Query(`SELECT user_id, membership, event, pos, local FROM room_members WHERE room = $1`, c.room.NID)
		var user, membership string
		var nid, pos int64
		var local bool
		for rows.Next() {
			rows.Scan(&user, &membership, &nid, &pos, &local)
			e := current[user]
			switch {
			case e == nil && membership == Leave: // state resolution took their membership back
				continue
			case e == nil:
				c.bad("%s is listed as %s without a membership event", user, membership)
				continue
			case e.Membership() != membership, e.NID != nid:
				c.bad("%s is listed as %s by event %d, but is %s by event %d", user, membership, nid, e.Membership(), e.NID)
			case local != c.s.IsLocal(user):
				c.bad("%s is listed as local: %v", user, local)
			case pos > c.room.Head().Pos:
				c.bad("the membership of %s is of position %d, beyond the room's head", user, pos)
			}
			rest--
		}
		if rest > 0 {
			c.bad("%d members are not listed", rest)
		}
		return rows.Close()
	})
	if joined, invited := c.room.MemberCounts(); joined != counts[Join] || invited != counts[Invite] {
		c.bad("%d joined and %d invited members are counted, but there are %d and %d", joined, invited, counts[Join], counts[Invite])
	}
	return err
}

// references checks rows that point to events.
func (c *roomCheck) references(ctx context.Context) error {
	return c.s.db.Read(ctx, func(tx *storage.Tx) error {
		var n int64
		_, err := tx.Get(`SELECT count(*) FROM redactions x JOIN events t ON t.room = x.room AND t.event_id = x.target
			WHERE x.room = $1 AND NOT EXISTS (SELECT 1 FROM events e WHERE e.nid = x.redaction AND e.room = x.room)`, []any{c.room.NID}, &n)
		if err != nil {
			return err
		}
		if n > 0 {
			c.bad("%d redactions are by events that are not there", n)
		}
		rows := tx.Query(`SELECT t.nid, t.flags FROM redactions x JOIN events t ON t.room = x.room AND t.event_id = x.target WHERE x.room = $1 AND x.applied`, c.room.NID)
		var nid, flags int64
		for rows.Next() {
			rows.Scan(&nid, &flags)
			if flags&flagRedacted == 0 {
				c.bad("event %d has a redaction, but is not marked as redacted", nid)
			}
		}
		return rows.Close()
	})
}
