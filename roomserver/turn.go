package roomserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/myelin-im/myelin/roomserver/authrules"
	"github.com/myelin-im/myelin/roomserver/pdu"
	"github.com/myelin-im/myelin/roomserver/snapshot"
	"github.com/myelin-im/myelin/storage"
)

// errEpoch fails a unit that was built on one that failed; the turn runs again.
var errEpoch = errors.New("an earlier unit of the room failed")

// Draft is an event that a local user wants to append to a room.
type Draft struct {
	// Sender is the local user.
	Sender string
	// Type and StateKey are as in the event; StateKey is nil for messages.
	Type     string
	StateKey *string
	// Content is a JSON object.
	Content json.RawMessage
	// Redacts is the event that an m.room.redaction redacts.
	Redacts string
	// OriginServerTS overrides the clock (application services), in milliseconds; 0 is now.
	OriginServerTS int64
	// Txn, if set, is written with the event, so that a repeated request finds it.
	Txn *Txn
	// StickyMS makes the event sticky for so long (MSC4354), at most pdu.MaxStickyMS; nil for others.
	StickyMS *int64
	// DelayID is the id by which the sender knows the event as a delayed one (MSC4140); empty for others.
	DelayID string
	// Beside, if set, adds to the unit what must stand or fall with the event. It may run more than once.
	Beside func(u *storage.Unit, eventID string)
}

// Turn is one writer's time alone with a room. What it appends is written as one unit, all or nothing.
// It must be used only inside the function given to Server.Turn.
type Turn struct {
	ctx   context.Context
	s     *Server
	room  *Room
	head  *Head
	epoch uint64
	unit  *storage.Unit
	// made counts the events that were made here, so that nobody else can have written them.
	made int
	// hurried tells that whoever began the turn waits for its unit at once.
	hurried bool

	events  []*Event
	members []memberChange
	changes []stateChange // pos is the offset in the unit
	packs   []int64
	redacts []redaction
	// relations are those of the unit's events; awaited are events to which others relate already.
	relations []related
	awaited   []*Event
	txn       *Txn
	created   bool
	entered   bool          // the room's history begins before the first event of the unit
	placed    int           // positions of the unit
	sticky    []stickyEvent // of the unit, by offsets
	// gapped are events whose parents are not all known; closed are gaps whose parents now are.
	gapped []*Event
	closed []Gap
	after  []func()

	// looked are events that were looked up by id before, nil those that are unknown.
	looked map[string]*Event
	// ahead is what was asked about the events that the turn receives, resolved what its state resolutions share; nil without
	// such events.
	ahead    *foreseen
	resolved *resolutions
	// recasts are events whose states were computed again, partial and givens what the turn says of a room without most
	// members.
	recasts []*Event
	partial *Partial
	givens  []givenState
}

// redaction is one application of a redaction within a unit.
type redaction struct{ target, by *Event }

// Turn runs fn alone with the room and writes what it appended. It returns when that is on disk. When fn
// fails nothing is written and its error is returned. fn may run again if an earlier write of
// the room failed, so it must not keep anything of a run that did not end well; it must not wait for
// the network or for another room.
func (s *Server) Turn(ctx context.Context, roomID string, fn func(*Turn) error) ([]*Event, error) {
	for {
		room, err := s.Room(ctx, roomID)
		if err != nil {
			return nil, err
		}
		events, err := s.runTurn(ctx, room, fn)
		if !errors.Is(err, errEpoch) {
			return events, err
		}
	}
}

// runTurn is one attempt of Turn.
func (s *Server) runTurn(ctx context.Context, room *Room, fn func(*Turn) error) ([]*Event, error) {
	t, wait, err := s.turn(ctx, room, true, fn)
	if err != nil {
		return nil, err
	}
	if err := wait(); err != nil {
		return nil, err
	}
	return t.events, nil
}

// turn runs fn alone with the room and submits what it appended; wait is as for submit. With hurried, the caller calls it at
// once.
func (s *Server) turn(ctx context.Context, room *Room, hurried bool, fn func(*Turn) error) (t *Turn, wait func() error, err error) {
	room.turn.Lock()
	defer room.turn.Unlock()
	if t, err = s.begin(ctx, room); err != nil {
		return nil, nil, err
	}
	t.hurried = hurried
	submitted := false
	defer func() {
		if !submitted {
			t.drop()
		}
	}()
	if err = fn(t); err != nil {
		if t.orphaned() {
			err = errEpoch
		}
		return nil, nil, err
	}
	if len(t.events) == 0 && t.placed == 0 && len(t.recasts) == 0 && t.partial == nil {
		wait, err = t.settle()
		return t, wait, err
	}
	submitted = true // which drops it if it fails
	wait, err = t.submit()
	return t, wait, err
}

// orphaned tells that a unit on which the turn builds has failed meanwhile: what the turn saw was never so, and some of
// it is no longer there to be read.
func (t *Turn) orphaned() bool {
	t.room.mu.Lock()
	defer t.room.mu.Unlock()
	return t.room.epoch != t.epoch
}

// begin starts a turn; the caller holds room.turn.
func (s *Server) begin(ctx context.Context, room *Room) (*Turn, error) {
	s.rooms.shed()
	room.mu.Lock()
	defer room.mu.Unlock()
	if room.evicted {
		return nil, errEpoch
	}
	return &Turn{ctx: ctx, s: s, room: room, head: room.next, epoch: room.epoch, unit: &storage.Unit{}}, nil
}

// drop forgets what a turn that failed left in memory.
func (t *Turn) drop() {
	if t == nil {
		return
	}
	t.room.mu.Lock()
	for _, e := range t.events {
		t.room.pending.remove(e)
	}
	for _, e := range t.recasts {
		t.room.pending.remove(e)
	}
	t.room.mu.Unlock()
	for _, p := range t.packs {
		t.s.states.Drop(t.room.NID, p)
	}
	for i := len(t.events) - 1; i >= 0; i-- {
		if e := t.events[i]; e.chain.Data != nil {
			t.room.chains.Drop(e.NID)
		}
	}
}

// AfterApply registers fn to run once the unit is durable, in position order, before
// subscribers hear of it. It must be quick.
func (t *Turn) AfterApply(fn func()) { t.after = append(t.after, fn) }

// event returns an event of the room by number, among them those that are not durable yet.
func (t *Turn) event(nid int64) (*Event, error) {
	t.room.mu.Lock()
	e := t.room.pending.byNID[nid]
	t.room.mu.Unlock()
	if e != nil {
		return e, nil
	}
	return t.s.eventByNID(t.ctx, t.room, nid)
}

// stateEvent returns the state event at a root, or nil.
func (t *Turn) stateEvent(root snapshot.Ref, typ, key string) (*Event, error) {
	nid, err := t.s.tree(t.room, root).Get(t.ctx, typ, key)
	if err != nil || nid == 0 {
		return nil, err
	}
	return t.event(nid)
}

// State returns the current state event of a type and key as the turn sees it, or nil.
func (t *Turn) State(typ, key string) (*Event, error) { return t.stateEvent(t.head.State, typ, key) }

// Membership returns the current membership of a user, Leave where there is none.
func (t *Turn) Membership(user string) (string, error) {
	e, err := t.State("m.room.member", user)
	if err != nil || e == nil {
		return Leave, err
	}
	return e.Membership(), nil
}

// Levels are the power levels of the current state.
func (t *Turn) Levels() (*authrules.Levels, error) {
	return t.s.levels(authState{t, t.head.State})
}

// authState gives the authorisation rules the state at one root.
type authState struct {
	t    *Turn
	root snapshot.Ref
}

// Event implements authrules.State.
func (a authState) Event(typ, key string) (*pdu.Event, error) {
	e, err := a.t.stateEvent(a.root, typ, key)
	if err != nil || e == nil {
		return nil, err
	}
	return e.Event, nil
}

// Append builds, authorises and appends an event of a local user. The error is a *mxerr.Error where
// the user may not send it or it breaks a limit.
func (t *Turn) Append(d Draft) (*Event, error) {
	parents, before, err := t.parents()
	if err != nil {
		return nil, err
	}
	proto, auth, err := t.proto(&d, parents, before)
	if err != nil {
		return nil, err
	}
	p, err := t.room.Version.Build(proto, t.s.name, t.s.keyID, t.s.key)
	if err != nil {
		return nil, buildError(err)
	}
	if err := authrules.Check(p, authState{t, before}); err != nil {
		return nil, authError(err)
	}
	if before != t.head.State {
		if err := authrules.Check(p, authState{t, t.head.State}); err != nil {
			return nil, authError(err)
		}
	}
	if err := t.checkRelation(p); err != nil {
		return nil, err
	}
	nid, err := t.s.nids.Next(t.ctx)
	if err != nil {
		return nil, fmt.Errorf("take an event number: %w", err)
	}
	e := &Event{Event: p, NID: nid, RoomNID: t.room.NID, StateBefore: before, StateAfter: before, auth: auth}
	t.made++
	if t.own(e, &d); anyPartial(parents) {
		e.flags |= flagPartial
	}
	if d.Redacts != "" && d.Type == "m.room.redaction" {
		if err := t.redactLocal(e, d.Redacts); err != nil {
			return nil, err
		}
	}
	if len(parents) < len(t.head.Extremities) {
		return e, t.merge(e, parents)
	}
	return e, t.extend(e)
}

// own notes what the sender, a local user, knows of the event besides what is in it.
func (t *Turn) own(e *Event, d *Draft) {
	if d.Txn != nil {
		e.TxnDevice, e.TxnID = d.Txn.Device, d.Txn.ID
		t.txn = d.Txn
	}
	e.DelayID = d.DelayID
	if d.Beside != nil {
		d.Beside(t.unit, e.ID)
	}
}

// parents chooses the extremities on which the next event of a local user builds, and gives the state that they make:
// all of them, or of more than an event may cite half of the oldest and half of the newest.
func (t *Turn) parents() ([]*Event, snapshot.Ref, error) {
	all := t.head.Extremities
	if len(all) <= pdu.MaxPrevEvents {
		return all, t.head.State, nil
	}
	const half = pdu.MaxPrevEvents / 2
	chosen := slices.Concat(all[:half], all[len(all)-half:])
	state, err := t.resolve(statesAfter(chosen))
	if err != nil {
		return nil, 0, fmt.Errorf("state of %d of %d extremities: %w", len(chosen), len(all), err)
	}
	return chosen, state, nil
}

// proto collects what an event on top of its parents needs: them, auth events, depth.
func (t *Turn) proto(d *Draft, parents []*Event, before snapshot.Ref) (proto *pdu.Proto, auth []int64, err error) {
	ts := d.OriginServerTS
	if ts == 0 {
		ts = t.s.now().UnixMilli()
	}
	proto = &pdu.Proto{
		RoomID: t.room.ID, Sender: d.Sender, Type: d.Type, StateKey: d.StateKey, Content: d.Content,
		Redacts: d.Redacts, Depth: depthOn(parents), OriginServerTS: ts, StickyMS: d.StickyMS,
	}
	for _, e := range parents {
		proto.PrevEvents = append(proto.PrevEvents, e.Ref())
	}
	for _, k := range authrules.Required(t.room.Version, authrules.Header{Type: d.Type, StateKey: d.StateKey, Sender: d.Sender, Content: d.Content}) {
		e, err := t.stateEvent(before, k.Type, k.StateKey)
		if err != nil {
			return nil, nil, err
		}
		if e != nil {
			proto.AuthEvents = append(proto.AuthEvents, e.Ref())
			auth = append(auth, e.NID)
		}
	}
	return proto, auth, nil
}

// place gives the event the next position of the unit.
func (t *Turn) place(e *Event) {
	t.placed++
	e.offset = t.placed
}

// keep makes the event part of the unit.
func (t *Turn) keep(e *Event) {
	t.room.mu.Lock()
	t.room.pending.add(e)
	t.room.mu.Unlock()
	t.events = append(t.events, e)
	if e.stored && t.resolved != nil { // an outlier until now, which may be rejected after all
		t.resolved = newResolutions()
	}
}

// extend makes e the room's only forward extremity.
func (t *Turn) extend(e *Event) error {
	t.place(e)
	next := &Head{Extremities: []*Event{e}, State: t.head.State}
	if e.IsState() {
		if err := t.setState(e); err != nil {
			return err
		}
		next.State = e.StateAfter
	}
	t.keep(e)
	t.head = next
	return nil
}

// merge makes e the child of some of the forward extremities.
func (t *Turn) merge(e *Event, parents []*Event) error {
	if e.IsState() {
		if err := t.setAfter(e); err != nil {
			return err
		}
	}
	t.place(e)
	t.keep(e)
	return t.advance(e, parents)
}

// setAfter computes the state after a state event from the state before it.
func (t *Turn) setAfter(e *Event) error {
	if err := t.setAfterIn(e, e.NID); err != nil {
		return err
	}
	if e.stored {
		return nil // it is in the index of auth chains
	}
	return t.index(e)
}

// setAfterIn computes the state after a state event, which is in no index by that, in a pack with a new number.
func (t *Turn) setAfterIn(e *Event, pack int64) (err error) {
	edit := t.s.tree(t.room, e.StateBefore).Edit(pack)
	edit.Set(e.Type, *e.StateKey, e.NID)
	if e.StateAfter, err = t.commit(edit, pack); err != nil {
		return fmt.Errorf("state after %s: %w", e.ID, err)
	}
	return nil
}

// setState computes the state after a state event that becomes part of the current state.
func (t *Turn) setState(e *Event) error {
	if e.Type == "m.room.member" {
		old, err := t.State(e.Type, *e.StateKey)
		if err != nil {
			return err
		}
		c := memberChange{user: *e.StateKey, new: e.Membership(), event: e, offset: e.offset}
		if old != nil {
			c.old = old.Membership()
		}
		t.members = append(t.members, c)
	}
	if err := t.setAfter(e); err != nil {
		return err
	}
	t.changes = append(t.changes, stateChange{int64(e.offset), t.head.State, e.StateAfter})
	return nil
}

// commit makes an edit of the state, named pack, part of the unit.
func (t *Turn) commit(edit *snapshot.Edit, pack int64) (snapshot.Ref, error) {
	root, rows, err := edit.Commit(t.ctx)
	if err != nil {
		return 0, err
	}
	if len(rows) > 0 {
		t.packs = append(t.packs, pack)
	}
	for _, row := range rows {
		t.unit.Add(packsTable, t.room.NID, row.ID, row.Data)
	}
	return root, nil
}

// index enters a state event in the index of auth chains.
func (t *Turn) index(e *Event) error {
	var replaces int64
	for _, nid := range e.auth {
		a, err := t.event(nid)
		if err != nil {
			return err
		}
		if a.Is(e.Type, *e.StateKey) {
			replaces = nid
		}
	}
	row, err := t.room.chains.Add(t.ctx, e.NID, e.auth, replaces)
	if err != nil {
		return fmt.Errorf("index auth chain of %s: %w", e.ID, err)
	}
	e.chain = row
	return nil
}
