package roomserver

import (
	"context"
	"fmt"
	"slices"

	"github.com/myelin-im/myelin/storage"
)

// PurgeMark says how much of a room's history was purged. The zero value: nothing.
type PurgeMark struct {
	// Before is the origin_server_ts, in milliseconds, before which there are no messages any more.
	Before int64
	// Floor is the place in the history order before which there is nothing any more; what is there must not be fetched
	// again from other servers.
	Floor HistoryToken
}

// Purge asks for the old history of a room to be deleted.
type Purge struct {
	// Before is the origin_server_ts, in milliseconds, that messages must have to stay.
	Before int64
	// Also, if set, deletes what others keep of the events that leave the timeline, in the unit in which they do. There are
	// at most purgeBatch of them, as they were before.
	Also func(tx *storage.Tx, room int64, purged []*Event) error
	// Pause, if set, is called between two units.
	Pause func(ctx context.Context) error
}

// purgeBatch is how many events one unit of a purge takes away: few, because other writes wait for it.
const purgeBatch = 100

// Purged returns how much of a room's history was purged.
func (s *Server) Purged(ctx context.Context, room *Room) (PurgeMark, error) {
	var mark PurgeMark
	_, err := s.db.Get(ctx, `SELECT before, anchor, sub FROM room_purges WHERE room = $1`, []any{room.NID},
		&mark.Before, &mark.Floor.Anchor, &mark.Floor.Sub)
	if err != nil {
		return PurgeMark{}, fmt.Errorf("purge of %s: %w", room.ID, err)
	}
	return mark, nil
}

// PurgeHistory deletes the messages of a room that are older than a time, with their relations. State events of that
// time leave the timeline and are kept as outliers, because they are the current state, or authorise what is. The
// forward extremities stay, and so does the end of a stay of a local user, which says what they may read. It works in
// small units, each complete in itself: after a crash, ask again. It returns how many messages it deleted.
//
// The state that only purged events had is deleted by SweepState.
func (s *Server) PurgeHistory(ctx context.Context, room *Room, p Purge) (deleted int, err error) {
	for _, find := range []string{
		`SELECT ` + eventColumns + ` FROM events WHERE room = $1 AND anchor IS NOT NULL AND ts < $2 AND (ts, nid) > ($3, $4) ORDER BY ts, nid LIMIT $5`,
		`SELECT ` + eventColumns + ` FROM events WHERE room = $1 AND anchor IS NULL AND chain_order IS NULL AND ts < $2 AND (ts, nid) > ($3, $4) ORDER BY ts, nid LIMIT $5`,
	} {
		step := &purgeStep{s: s, room: room, purge: p, find: find}
		for more := true; more; {
			if more, err = step.run(ctx); err != nil {
				return deleted, fmt.Errorf("purge history of %s: %w", room.ID, err)
			}
			deleted += len(step.messages)
			if more && p.Pause != nil {
				if err := p.Pause(ctx); err != nil {
					return deleted, err
				}
			}
		}
	}
	return deleted, nil
}

// purgeStep goes through the old events of a room, a batch at a time.
type purgeStep struct {
	s     *Server
	room  *Room
	purge Purge
	find  string // query for the next events
	ts    int64  // of the last event seen, and
	nid   int64  // its number

	messages, state []*Event // the last batch: what goes, and what leaves the timeline
}

// run purges the next batch. It is alone with the room until that is on disk: a turn that saw an event which is gone
// when it is written would build on state that may be swept.
func (p *purgeStep) run(ctx context.Context) (more bool, err error) {
	s, r := p.s, p.room
	p.messages, p.state = nil, nil
	r.turn.Lock()
	defer r.turn.Unlock()
	r.mu.Lock()
	heads := append(slices.Clone(r.next.Extremities), r.durable.Load().Extremities...)
	gone := r.evicted
	r.mu.Unlock()
	if gone {
		return false, ErrUnknownRoom
	}
	events, err := s.queryEvents(ctx, r, p.find, r.NID, p.purge.Before, p.ts, p.nid, int64(purgeBatch))
	if err != nil || len(events) == 0 {
		return false, err
	}
	last := events[len(events)-1]
	p.ts, p.nid = last.OriginServerTS, last.NID
	for _, e := range events {
		if slices.ContainsFunc(heads, func(h *Event) bool { return h.NID == e.NID }) || e.Outlier() && e.IsState() {
			continue
		}
		if !e.IsState() {
			p.messages = append(p.messages, e)
		} else if ended, err := s.endsStay(ctx, r, e); err != nil {
			return false, err
		} else if !ended {
			p.state = append(p.state, e)
		}
	}
	if len(p.messages)+len(p.state) == 0 {
		return len(events) == purgeBatch, nil
	}
	if err := s.db.Write(ctx, p.write); err != nil {
		return false, err
	}
	p.apply()
	return len(events) == purgeBatch, nil
}

// endsStay tells whether an event is how a local user left the room: what they may read is the state around it.
func (s *Server) endsStay(ctx context.Context, r *Room, e *Event) (bool, error) {
	if e.Type != "m.room.member" || !s.IsLocal(*e.StateKey) || e.Membership() == Join {
		return false, nil
	}
	var nid int64
	_, err := s.db.Get(ctx, `SELECT event FROM room_members WHERE room = $1 AND user_id = $2`, []any{r.NID, *e.StateKey}, &nid)
	return nid == e.NID, err
}

// write is the unit of a batch.
func (p *purgeStep) write(tx *storage.Tx) error {
	r := p.room
	numbers := make([]any, 0, purgeBatch)
	for _, e := range p.messages {
		numbers = append(numbers, e.NID)
	}
	// Always the same number of parameters, so that one prepared statement serves all.
	fill := func(list []any) []any {
		for len(list) < purgeBatch {
			list = append(list, list[0])
		}
		return list
	}
	if len(numbers) > 0 {
		if _, err := tx.Exec(`DELETE FROM events WHERE nid IN `+storage.In(purgeBatch, 1), fill(numbers)...); err != nil {
			return err
		}
	}
	if len(p.state) > 0 {
		numbers = numbers[:0]
		for _, e := range p.state {
			numbers = append(numbers, e.NID)
		}
		args := append(fill(numbers), int64(flagOutlier))
		if _, err := tx.Exec(fmt.Sprintf(`UPDATE events SET anchor = NULL, sub = 0, state_before = NULL, state_after = NULL, flags = flags | $%d
			WHERE nid IN `, purgeBatch+1)+storage.In(purgeBatch, 1), args...); err != nil {
			return err
		}
	}
	for _, e := range slices.Concat(p.messages, p.state) {
		if err := p.forget(tx, e); err != nil {
			return err
		}
	}
	for _, g := range *r.gaps.Load() {
		if slices.ContainsFunc(p.state, g.at) || slices.ContainsFunc(p.messages, g.at) {
			if _, err := tx.Exec(`DELETE FROM room_gaps WHERE room = $1 AND anchor = $2 AND sub = $3`, r.NID, g.Place.Anchor, g.Place.Sub); err != nil {
				return err
			}
		}
	}
	if _, err := tx.Exec(`INSERT INTO room_purges (room, before, anchor, sub, swept) VALUES ($1, $2, 0, 0, $3)
		ON CONFLICT (room) DO UPDATE SET before = CASE WHEN excluded.before > room_purges.before THEN excluded.before ELSE room_purges.before END,
			swept = excluded.swept`, r.NID, p.purge.Before, false); err != nil {
		return err
	}
	if p.purge.Also == nil {
		return nil
	}
	return p.purge.Also(tx, r.NID, slices.Concat(p.messages, p.state))
}

// forget deletes what an event of the batch says of others.
func (p *purgeStep) forget(tx *storage.Tx, e *Event) error {
	for _, link := range indexedOf(e.Event) {
		if e.Anchor == 0 {
			break
		}
		if _, err := tx.Exec(`DELETE FROM relations WHERE room = $1 AND target = $2 AND anchor = $3 AND sub = $4`,
			p.room.NID, eventKey(link.Target), e.Anchor, e.Sub); err != nil {
			return err
		}
	}
	if e.IsState() {
		return nil
	}
	if _, err := tx.Exec(`DELETE FROM redactions WHERE room = $1 AND target = $2`, p.room.NID, eventKey(e.ID)); err != nil {
		return err
	}
	if e.Type != "m.room.redaction" {
		return nil
	}
	if target := e.Redacts(); target != "" {
		_, err := tx.Exec(`DELETE FROM redactions WHERE room = $1 AND target = $2 AND redaction = $3`, p.room.NID, eventKey(target), e.NID)
		return err
	}
	// A redaction that was redacted does not say any more what it redacts.
	_, err := tx.Exec(`DELETE FROM redactions WHERE room = $1 AND redaction = $2`, p.room.NID, e.NID)
	return err
}

// apply makes memory forget the batch.
func (p *purgeStep) apply() {
	s, r := p.s, p.room
	all := slices.Concat(p.messages, p.state)
	s.redactionLock.Lock()
	s.redactionEpoch.Add(1) // who read meanwhile does not keep what they read
	for _, e := range all {
		s.events.Delete(e.NID)
	}
	s.redactionLock.Unlock()
	gone := make(map[int64]bool, len(all))
	for _, e := range all {
		gone[e.NID] = true
		for _, link := range indexedOf(e.Event) {
			s.relations.remove(r.NID, link.Target, e.NID)
		}
	}
	r.recent.remove(gone)
	if gaps := *r.gaps.Load(); slices.ContainsFunc(gaps, func(g Gap) bool { return gone[g.NID] }) {
		gaps = slices.DeleteFunc(slices.Clone(gaps), func(g Gap) bool { return gone[g.NID] })
		r.gaps.Store(&gaps)
	}
}

// at tells whether the gap is before an event.
func (g Gap) at(e *Event) bool { return g.NID == e.NID }

// remove takes events away; slices handed out before keep them.
func (t *timelineRing) remove(gone map[int64]bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	isGone := func(e *Event) bool { return gone[e.NID] }
	if slices.ContainsFunc(t.events, isGone) {
		t.events = slices.DeleteFunc(slices.Clone(t.events), isGone)
		t.account()
	}
}
