package roomserver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/myelin-im/myelin/roomserver/authrules"
	"github.com/myelin-im/myelin/roomserver/pdu"
	"github.com/myelin-im/myelin/roomserver/snapshot"
)

// Outcome is what became of a received event.
type Outcome int

// The outcomes.
const (
	// Accepted events are part of the timeline.
	Accepted Outcome = iota + 1
	// SoftFailed events are kept, but shown to nobody and built on by nobody here.
	SoftFailed
	// Rejected events are kept only to know them.
	Rejected
	// Known events were here before.
	Known
)

// MissingError says which events must be known before an event can be judged. Nothing is kept of the event:
// it is tried again when it comes again.
type MissingError struct {
	// Event is the event that could not be judged.
	Event string
	// Prev are the parents without a known state, Auth the unknown auth events.
	Prev, Auth []string
}

// Error names the missing events.
func (e *MissingError) Error() string {
	return fmt.Sprintf("%s refers to unknown events: prev_events %s, auth_events %s",
		e.Event, strings.Join(e.Prev, " "), strings.Join(e.Auth, " "))
}

// Received is the result for one event.
type Received struct {
	Outcome Outcome
	// Reason is why the event was rejected or soft-failed.
	Reason error
	// Err is set where the event could not be judged, for example a *MissingError.
	Err error
}

// Incoming is an event that comes into a room ready made: of another server, or built here (Prepare) and signed elsewhere.
type Incoming struct {
	// Event has been checked as far as its format, hashes and signatures go.
	Event *pdu.Event
	// Before, if not nil, are the states after those parents that this server does not know, as another server
	// described them; without States an event with unknown parents cannot be judged.
	Before *Given
	// Spam, if not nil, is why the room's policy server does not recommend the event, which is then soft-failed.
	Spam error
	// Relay marks what this server has to send on to the other servers of the room (Event.Relayed).
	Relay bool
	// Brought marks an event of a local user that another server has brought into the room (Event.Brought).
	Brought bool
	// Draft is what a local user wanted, if the event is theirs, or nil.
	Draft *Draft
}

// Take takes events of other servers into a room, parents before children. Their format, hashes and signatures
// have been checked. The results are in the order of the events; an event that cannot be judged harms no other.
// (Server-server API v1.19, "Checks performed on receipt of a PDU", steps 4 to 6.)
func (s *Server) Take(ctx context.Context, roomID string, in []Incoming) ([]Received, error) {
	var out []Received
	_, err := s.Turn(ctx, roomID, func(t *Turn) error {
		out = make([]Received, len(in))
		if err := t.foresee(in); err != nil {
			return err
		}
		past, err := t.beforeGaps(in)
		if err != nil {
			return err
		}
		for i := range in {
			var missing *MissingError
			if p := in[i].Event; p.RoomID != t.room.ID {
				out[i].Err = fmt.Errorf("event %s is of room %s and not of %s", p.ID, p.RoomID, t.room.ID)
				continue
			}
			out[i], out[i].Err = t.receive(&in[i], past)
			if err := out[i].Err; err != nil && !errors.As(err, &missing) {
				return err
			}
		}
		return past.insert(t)
	})
	return out, err
}

// find returns an event of the room by id, among them those that are not durable yet; nil if it is unknown.
func (t *Turn) find(id string) (*Event, error) {
	t.room.mu.Lock()
	e := t.room.pending.byID[id]
	t.room.mu.Unlock()
	if e != nil || t.created {
		return e, nil // nothing of a new room is stored
	}
	if e, ok := t.looked[id]; ok {
		return e, nil
	}
	e, err := t.s.Event(t.ctx, t.room, id)
	if errors.Is(err, ErrUnknownEvent) {
		return nil, nil
	}
	return e, err
}

// receive judges one event and makes it part of the unit.
func (t *Turn) receive(in *Incoming, past *pastEvents) (Received, error) {
	e, prev, got, err := t.judge(in)
	if err != nil || got.Outcome != 0 {
		return got, err
	}
	if gap, older := past.gaps[e.ID]; older && in.Spam == nil {
		return t.slip(e, gap, past)
	}
	return t.admit(e, prev, in.Spam)
}

// judge applies the rules to one event by its auth events and by the state before it. Without an outcome the event is
// allowed, and its parents are those that are known.
func (t *Turn) judge(in *Incoming) (e *Event, prev []*Event, got Received, err error) {
	p := in.Event
	known, err := t.find(p.ID)
	if err != nil {
		return nil, nil, got, err
	}
	if known != nil && !known.Outlier() {
		return known, nil, Received{Outcome: Known}, nil
	}
	if in.Before != nil {
		if err := t.outliers(in.Before.Events); err != nil {
			return nil, nil, got, err
		}
	}
	auth, prev, err := t.citations(p)
	var missing *MissingError
	if errors.As(err, &missing) && len(missing.Auth) == 0 && in.Before != nil && len(in.Before.States) > 0 {
		err = nil
	}
	if err != nil {
		return nil, nil, got, err
	}
	if e, err = t.newEvent(p, known, auth); err != nil {
		return nil, nil, got, err
	}
	roots := statesAfter(prev)
	if anyPartial(prev) {
		e.flags |= flagPartial
	}
	if missing != nil {
		given, err := t.takeGiven(e, in.Before)
		if err != nil {
			return nil, nil, got, err
		}
		for _, root := range given {
			if !slices.Contains(roots, root) {
				roots = append(roots, root)
			}
		}
	}
	if e.StateBefore, err = t.resolve(roots); err != nil {
		return nil, nil, got, fmt.Errorf("state before %s: %w", p.ID, err)
	}
	if e.StateAfter = e.StateBefore; in.Relay {
		e.flags |= flagRelayed
	}
	if in.Brought {
		e.flags |= flagBrought
	}
	if in.Draft != nil {
		t.own(e, in.Draft)
	}
	reason, err := t.refusal(e, auth)
	if err != nil {
		return nil, nil, got, err
	}
	if reason != nil {
		e.flags |= flagRejected
		t.keep(e)
		return e, prev, Received{Outcome: Rejected, Reason: reason}, nil
	}
	return e, prev, got, nil
}

// newEvent makes the Event of a received PDU, which may have been an outlier until now.
func (t *Turn) newEvent(p *pdu.Event, known *Event, auth []*Event) (*Event, error) {
	e := &Event{Event: p, RoomNID: t.room.NID}
	if p.Redacted {
		e.flags |= flagHashRedacted
	}
	for _, a := range auth {
		e.auth = append(e.auth, a.NID)
	}
	if known != nil {
		e.NID, e.stored = known.NID, true
		return e, nil
	}
	var err error
	if e.NID, err = t.s.nids.Next(t.ctx); err != nil {
		return nil, fmt.Errorf("take an event number: %w", err)
	}
	return e, nil
}

// citations finds the auth events and parents of an event.
func (t *Turn) citations(p *pdu.Event) (auth, prev []*Event, err error) {
	missing := &MissingError{Event: p.ID}
	if auth, err = t.authEvents(p); err != nil && !errors.As(err, &missing) {
		return nil, nil, err
	}
	for _, id := range p.PrevEventIDs() {
		e, err := t.find(id)
		if err != nil {
			return nil, nil, err
		}
		if e == nil || e.Outlier() {
			missing.Prev = append(missing.Prev, id)
			continue
		}
		prev = append(prev, e)
	}
	if len(missing.Auth)+len(missing.Prev) > 0 {
		return auth, prev, missing
	}
	return auth, prev, nil
}

// refusal decides whether an event is rejected: by its own auth events, or by the state before it.
func (t *Turn) refusal(e *Event, auth []*Event) (reason, err error) {
	if reason, err = t.refusedByAuthEvents(e, auth); reason != nil || err != nil {
		return reason, err
	}
	if e.Partial() {
		return t.refusedPresumably(e, auth)
	}
	return verdict(authrules.Check(e.Event, authState{t, e.StateBefore}))
}

// verdict tells a refusal by the rules from a failure to apply them.
func verdict(err error) (reason, failure error) {
	var refused *authrules.Error
	if errors.As(err, &refused) {
		return refused, nil
	}
	return nil, err
}

// refusedByAuthEvents applies the rules with the state that the event's auth events make up.
func (t *Turn) refusedByAuthEvents(e *Event, auth []*Event) (reason, err error) {
	var create *Event
	if t.room.Version.RoomIDIsCreateHash {
		if create, err = t.find("$" + t.room.ID[1:]); err != nil {
			return nil, err
		}
	}
	return refusedBy(e.Event, auth, create)
}

// refusedBy applies the rules to an event with the state that its auth events make up, and the room's m.room.create if they
// leave that out.
func refusedBy(p *pdu.Event, auth []*Event, create *Event) (reason, err error) {
	if p.Oversized() {
		return errors.New("a field is too long"), nil
	}
	var list authrules.EventList
	rejected := map[string]bool{}
	for _, a := range auth {
		list = append(list, a.Event)
		rejected[a.ID] = a.Rejected()
	}
	if reason, err = verdict(authrules.CheckStateIndependent(p, list, func(id string) bool { return rejected[id] })); reason != nil || err != nil {
		return reason, err
	}
	if create != nil && create.ID != p.ID {
		list = append(list, create.Event)
	}
	return verdict(authrules.Check(p, list))
}

// statesAfter lists the states that events left behind, each once.
func statesAfter(events []*Event) []snapshot.Ref {
	var roots []snapshot.Ref
	for _, e := range events {
		if !slices.Contains(roots, e.StateAfter) {
			roots = append(roots, e.StateAfter)
		}
	}
	return roots
}

// admit takes an authorised event in: its state, then, unless it fails against the current state or is spam, its
// place in the timeline. A current state without most members says nothing (MSC3902).
func (t *Turn) admit(e *Event, prev []*Event, spam error) (Received, error) {
	if e.IsState() {
		if err := t.setAfter(e); err != nil {
			return Received{}, err
		}
	}
	reason := spam
	if reason == nil && e.StateBefore != t.head.State && !anyPartial(t.head.Extremities) {
		var err error
		if reason, err = verdict(authrules.Check(e.Event, authState{t, t.head.State})); err != nil {
			return Received{}, err
		}
	}
	if reason != nil {
		e.flags |= flagSoftFailed
		t.keep(e)
		if spam == nil {
			t.hold(e)
		}
		return Received{Outcome: SoftFailed, Reason: reason}, nil
	}
	t.place(e)
	t.keep(e)
	if e.flags&flagGiven != 0 {
		t.gapped = append(t.gapped, e)
	}
	if err := t.redactReceived(e); err != nil {
		return Received{}, err
	}
	if err := t.await(e); err != nil {
		return Received{}, fmt.Errorf("relations of %s: %w", e.ID, err)
	}
	return Received{Outcome: Accepted}, t.advance(e, prev)
}

// advance moves the head on to an accepted event: its parents, also those behind rejected and soft-failed events,
// are extremities no longer.
func (t *Turn) advance(e *Event, prev []*Event) error {
	covered := map[string]bool{}
	if err := t.cover(prev, covered); err != nil {
		return err
	}
	next := &Head{}
	for _, x := range t.head.Extremities {
		if !covered[x.ID] {
			next.Extremities = append(next.Extremities, x)
		}
	}
	next.Extremities = append(next.Extremities, e)
	var err error
	if next.State, err = t.resolve(statesAfter(next.Extremities)); err != nil {
		return fmt.Errorf("current state after %s: %w", e.ID, err)
	}
	if err := t.logState(e, t.head.State, next.State); err != nil {
		return err
	}
	t.head = next
	return nil
}

// cover adds the events that a child of these makes no extremities.
func (t *Turn) cover(prev []*Event, covered map[string]bool) error {
	for _, p := range prev {
		if covered[p.ID] {
			continue
		}
		covered[p.ID] = true
		if !p.Rejected() && !p.SoftFailed() {
			continue
		}
		var behind []*Event
		for _, id := range p.PrevEventIDs() {
			b, err := t.find(id)
			if err != nil {
				return err
			}
			if b != nil && !b.Outlier() {
				behind = append(behind, b)
			}
		}
		if err := t.cover(behind, covered); err != nil {
			return err
		}
	}
	return nil
}

// logState notes a change of the current resolved state at the position of an event, and the memberships in it.
func (t *Turn) logState(at *Event, from, to snapshot.Ref) error {
	if from == to {
		return nil
	}
	t.changes = append(t.changes, stateChange{int64(at.offset), from, to})
	var pairs [][2]int64
	var nids []int64
	err := t.s.tree(t.room, from).DiffType(t.ctx, to, "m.room.member", func(old, new int64) error {
		pairs = append(pairs, [2]int64{old, new})
		for _, nid := range []int64{old, new} {
			if nid != 0 {
				nids = append(nids, nid)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	events, err := t.load(nids)
	if err != nil {
		return err
	}
	for _, p := range pairs {
		c := memberChange{offset: at.offset, new: Leave}
		if p[0] != 0 {
			e := events[0]
			c.user, c.old, c.event, events = *e.StateKey, e.Membership(), e, events[1:]
		}
		if p[1] != 0 {
			e := events[0]
			c.user, c.new, c.event, events = *e.StateKey, e.Membership(), e, events[1:]
		}
		t.members = append(t.members, c)
	}
	return nil
}

// load returns events of the room by number, among them those that are not durable yet, in the same order.
func (t *Turn) load(nids []int64) ([]*Event, error) {
	out := make([]*Event, len(nids))
	var stored []int64
	t.room.mu.Lock()
	for i, nid := range nids {
		if out[i] = t.room.pending.byNID[nid]; out[i] == nil {
			stored = append(stored, nid)
		}
	}
	t.room.mu.Unlock()
	events, err := t.s.eventsByNID(t.ctx, t.room, stored)
	if err != nil {
		return nil, err
	}
	for i := range out {
		if out[i] == nil {
			out[i], events = events[0], events[1:]
		}
	}
	return out, nil
}

// redactReceived applies a redaction that was received to its target, or those that waited for this event to it.
func (t *Turn) redactReceived(e *Event) error {
	if target := e.Redacts(); e.Type == "m.room.redaction" && target != "" {
		found, err := t.find(target)
		if err != nil {
			return err
		}
		if found == nil {
			t.unit.Add(redactionsTable, t.room.NID, eventKey(target), e.NID, false)
		} else if err := t.redactIfAllowed(e, found); err != nil {
			return err
		}
	}
	var waiting []*Event
	for _, by := range t.unwritten() {
		if by != e && by.offset > 0 && by.Redacts() == e.ID {
			waiting = append(waiting, by)
		}
	}
	stored, err := t.redactionsOf(e.ID)
	if err != nil {
		return err
	}
	for _, nid := range stored {
		by, err := t.event(nid)
		if err != nil {
			return err
		}
		waiting = append(waiting, by)
	}
	for _, by := range waiting {
		if err := t.redactIfAllowed(by, e); err != nil {
			return err
		}
	}
	return nil
}

// redactIfAllowed applies a redaction if its sender had the right to it when it was sent.
func (t *Turn) redactIfAllowed(by, target *Event) error {
	if target.Type == "m.room.create" || target.RoomNID != by.RoomNID {
		return nil
	}
	levels, err := t.s.levels(authState{t, by.StateBefore})
	if err != nil {
		return err
	}
	if authrules.CanRedact(by.Event, target.Event, levels) {
		t.redacts = append(t.redacts, redaction{target, by})
	}
	return nil
}
