package roomserver

import (
	"context"
	"encoding/binary"
	"errors"
	"sync"
	"sync/atomic"

	"github.com/myelin-im/myelin/roomserver/authchain"
	"github.com/myelin-im/myelin/roomserver/pdu"
	"github.com/myelin-im/myelin/roomserver/snapshot"
	"github.com/myelin-im/myelin/storage"
)

// ErrUnknownRoom says that this server has no such room.
var ErrUnknownRoom = errors.New("unknown room")

// Room is one active room: what the next event builds on, and the recent past that most readers ask for.
type Room struct {
	// NID is the room's number in the database.
	NID int64
	// ID is the room id.
	ID string
	// Version is the room version.
	Version *pdu.Version

	seed [16]byte

	// turn is held by the one writer. mu guards the fields below it and is only held for moments:
	// the committer takes it while a writer may be waiting for the committer.
	turn    sync.Mutex
	mu      sync.Mutex
	next    *Head // what the next turn builds on
	pending pendingEvents
	last    *storage.Unit // the newest unit in flight
	flying  int           // units handed to the group commit and not yet done
	epoch   uint64        // grows when a unit fails; units of an older epoch fail too
	evicted bool          // no longer in the table: load the room again

	chains  *authchain.Index
	durable atomic.Pointer[Head]
	members memberIndex
	recent  timelineRing
	changes stateRing
	gaps    atomic.Pointer[[]Gap] // by place; never nil; replaced and not changed
	firsts  map[int64]int64       // lowest sub that was given away at an anchor with backfilled events; guarded by turn

	lifetime atomic.Pointer[roomLifetime]
	partial  atomic.Pointer[Partial] // nil: all members have been known all the time
}

// Head is what the next event of a room builds on. It is immutable.
type Head struct {
	// Extremities are the room's forward extremities.
	Extremities []*Event
	// State is the root of the current resolved state.
	State snapshot.Ref
	// Pos is the position of the room's last entry in the log.
	Pos int64
}

// Head returns the durable head of the room.
func (r *Room) Head() *Head { return r.durable.Load() }

// depthOn is the depth that an event with these parents has.
func depthOn(parents []*Event) int64 {
	var d int64
	for _, e := range parents {
		d = max(d, e.Depth)
	}
	return min(d, pdu.MaxDepth-1) + 1
}

// pendingEvents are the events of units that are not yet durable, by number and by id.
type pendingEvents struct {
	byNID map[int64]*Event
	byID  map[string]*Event
}

func newPending() pendingEvents {
	return pendingEvents{map[int64]*Event{}, map[string]*Event{}}
}

func (p *pendingEvents) add(e *Event) { p.byNID[e.NID], p.byID[e.ID] = e, e }

// remove takes e away, unless a later unit has put another value in its place.
func (p *pendingEvents) remove(e *Event) {
	if p.byNID[e.NID] == e {
		delete(p.byNID, e.NID)
		delete(p.byID, e.ID)
	}
}

const (
	// maxRooms bounds the rooms that are kept in memory at once.
	maxRooms = 20_000
	// maxRecentBytes bounds what their recent events take, which is nearly all of it.
	maxRecentBytes = 256 << 20
)

// roomTable holds the active rooms by id and by number.
type roomTable struct {
	mu    sync.RWMutex
	byID  map[string]*Room
	byNID map[int64]*Room
	load  keyedMutex[string]

	recent      atomic.Int64 // bytes of the recent events of all rooms
	recentLimit int64        // what they should not exceed
	shedding    atomic.Bool
}

func (t *roomTable) init() {
	t.byID = map[string]*Room{}
	t.byNID = map[int64]*Room{}
	t.recentLimit = maxRecentBytes
}

func (t *roomTable) get(id string) *Room {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.byID[id]
}

func (t *roomTable) getNID(nid int64) *Room {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.byNID[nid]
}

// add puts a loaded room into the table, making space by dropping idle ones.
func (t *roomTable) add(r *Room) {
	r.recent.countIn(&t.recent)
	for _, gone := range t.put(r) {
		gone.recent.countOut()
	}
}

func (t *roomTable) put(r *Room) (gone []*Room) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.byID) >= maxRooms {
		gone = t.evictLocked(maxRooms / 10)
	}
	t.byID[r.ID] = r
	t.byNID[r.NID] = r
	return gone
}

// evictLocked drops up to n rooms that nobody is writing. Map order makes the choice random, which is
// good enough: a dropped room that is needed again costs a few reads.
func (t *roomTable) evictLocked(n int) (gone []*Room) {
	for id, r := range t.byID {
		if len(gone) == n {
			break
		}
		if !r.turn.TryLock() {
			continue
		}
		r.mu.Lock()
		if r.flying == 0 {
			r.evicted = true
			delete(t.byID, id)
			delete(t.byNID, r.NID)
			gone = append(gone, r)
		}
		r.mu.Unlock()
		r.turn.Unlock()
	}
	return gone
}

// shed makes rooms forget recent events when all of them together take too much. Which ones is left to chance, as with
// rooms themselves.
func (t *roomTable) shed() {
	excess := t.recent.Load() - t.recentLimit
	if excess <= 0 || !t.shedding.CompareAndSwap(false, true) {
		return
	}
	defer t.shedding.Store(false)
	excess += t.recentLimit / 10
	t.mu.RLock()
	defer t.mu.RUnlock()
	for _, r := range t.byID {
		if excess <= 0 {
			return
		}
		excess -= r.recent.unload()
	}
}

// Room returns the room of an id, loading it if it is not in memory. It returns ErrUnknownRoom
// when this server has none.
func (s *Server) Room(ctx context.Context, id string) (*Room, error) {
	if r := s.rooms.get(id); r != nil {
		return r, nil
	}
	defer s.rooms.load.lock(id)()
	if r := s.rooms.get(id); r != nil {
		return r, nil
	}
	return s.loadRoom(ctx, id)
}

// ActiveRoom returns a room by its number if it is in memory, else nil. It never waits.
func (s *Server) ActiveRoom(nid int64) *Room { return s.rooms.getNID(nid) }

// RoomByNID is Room for a room's number.
func (s *Server) RoomByNID(ctx context.Context, nid int64) (*Room, error) {
	if r := s.rooms.getNID(nid); r != nil {
		return r, nil
	}
	var id string
	found, err := s.db.Get(ctx, `SELECT room_id FROM rooms WHERE nid = $1`, []any{nid}, &id)
	if err != nil {
		return nil, err
	}
	if !found {
		return nil, ErrUnknownRoom
	}
	return s.Room(ctx, id)
}

// tree is the room's state at a root.
func (s *Server) tree(r *Room, root snapshot.Ref) snapshot.Tree {
	return s.states.At(r.NID, r.seed, root)
}

func encodeNIDs(events []*Event) []byte {
	out := make([]byte, 0, 4*len(events))
	for _, e := range events {
		out = binary.AppendUvarint(out, uint64(e.NID))
	}
	return out
}

func decodeNIDs(b []byte) (nids []int64, err error) {
	for len(b) > 0 {
		v, n := binary.Uvarint(b)
		if n <= 0 {
			return nil, errors.New("bad list of event numbers")
		}
		nids = append(nids, int64(v))
		b = b[n:]
	}
	return nids, nil
}
