package stateres

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/myelin-im/myelin/internal/canonicaljson"
	"github.com/myelin-im/myelin/roomserver/authchain"
	"github.com/myelin-im/myelin/roomserver/authrules"
	"github.com/myelin-im/myelin/roomserver/pdu"
	"github.com/myelin-im/myelin/roomserver/snapshot"
)

// draft is what an event is made from.
type draft struct {
	seed        string // of its ID
	sender, typ string
	key         *string
	content     map[string]any
	ts, depth   int64
	prev, auth  []string
}

// makeEvent makes an event without hash and signature: nothing here looks at them.
func makeEvent(t testing.TB, v *pdu.Version, roomID string, d draft) *pdu.Event {
	t.Helper()
	hash := sha256.Sum256([]byte(d.seed))
	id := "$" + base64.RawURLEncoding.EncodeToString(hash[:])
	if v.EventFormat == 1 {
		id = "$" + d.seed + ":test"
	}
	refs := func(ids []string) any {
		out := []any{}
		for _, id := range ids {
			if v.EventFormat == 1 {
				out = append(out, []any{id, map[string]any{}})
			} else {
				out = append(out, id)
			}
		}
		return out
	}
	m := map[string]any{
		"type": d.typ, "sender": d.sender, "content": d.content, "depth": d.depth, "origin_server_ts": d.ts,
		"prev_events": refs(d.prev), "auth_events": refs(d.auth), "hashes": map[string]any{}, "signatures": map[string]any{},
		"room_id": roomID,
	}
	if d.key != nil {
		m["state_key"] = *d.key
	}
	if v.EventFormat == 1 {
		m["event_id"] = id
	}
	if v.RoomIDIsCreateHash && d.typ == pdu.TypeCreate {
		delete(m, "room_id")
	}
	raw, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	if raw, err = canonicaljson.Canonical(raw, canonicaljson.Strict); err != nil {
		t.Fatal(err)
	}
	ev, err := pdu.FromStore(v, raw, id, false)
	if err != nil {
		t.Fatal(err)
	}
	return ev
}

// record is an event as a server keeps it.
type record struct {
	*pdu.Event
	nid      int64
	rejected bool
	after    snapshot.Ref
}

// server is a server's view of one room: its numbers, snapshots and graph are its own.
type server struct {
	t      testing.TB
	v      *pdu.Version
	states *snapshot.Store
	auth   *authchain.Index
	byID   map[string]*record
	byNID  map[int64]*record
	nid    int64

	packs map[int64][]byte
	rows  map[int64]authchain.Row
	order []int64 // nids of rows, in ascending order of the rows
	asked int     // rows and events read

	memory *Memory // of resolutions, if they are to have one
}

const room = 1

var seed = [16]byte{1, 2, 3}

func newServer(t testing.TB, v *pdu.Version) *server {
	s := &server{
		t: t, v: v, byID: map[string]*record{}, byNID: map[int64]*record{},
		packs: map[int64][]byte{}, rows: map[int64]authchain.Row{},
	}
	s.states = snapshot.NewStore(s, 1<<26)
	s.auth = authchain.New(s, room)
	return s
}

func (s *server) LoadPacks(_ context.Context, _ int64, ids []int64, put func(int64, []byte)) error {
	for _, id := range ids {
		s.asked++
		put(id, s.packs[id])
	}
	return nil
}

func (s *server) LoadRows(_ context.Context, _ int64, nids []int64, put func(int64, []byte)) error {
	for _, nid := range nids {
		if r, ok := s.rows[nid]; ok {
			s.asked++
			put(nid, r.Data)
		}
	}
	return nil
}

func (s *server) RowsAfter(_ context.Context, _, after int64, limit int, put func(int64, []byte)) error {
	from, _ := slices.BinarySearchFunc(s.order, after+1, func(nid, order int64) int { return cmp.Compare(s.rows[nid].Order, order) })
	for _, nid := range s.order[from:min(len(s.order), from+limit)] {
		s.asked++
		put(nid, s.rows[nid].Data)
	}
	return nil
}

func (s *server) LastOrder(context.Context, int64) (last int64, err error) {
	if len(s.order) > 0 {
		last = s.rows[s.order[len(s.order)-1]].Order
	}
	return last, nil
}

// Events implements Events.
func (s *server) Events(_ context.Context, nids []int64) ([]Event, error) {
	s.asked += len(nids)
	out := make([]Event, len(nids))
	for i, nid := range nids {
		r := s.byNID[nid]
		if r == nil {
			return nil, fmt.Errorf("no event %d", nid)
		}
		out[i] = Event{r.Event, r.rejected}
	}
	return out, nil
}

func (s *server) tree(root snapshot.Ref) snapshot.Tree { return s.states.At(room, seed, root) }

func (s *server) input(roots []snapshot.Ref) Input {
	in := Input{Version: s.v, Events: s, Auth: s.auth, Memory: s.memory}
	for _, r := range roots {
		in.States = append(in.States, s.tree(r))
	}
	return in
}

// commit stores what an edit made.
func (s *server) commit(e *snapshot.Edit, pack int64) snapshot.Ref {
	root, rows, err := e.Commit(context.Background())
	if err != nil {
		s.t.Fatal(err)
	}
	for _, r := range rows {
		s.packs[r.ID] = r.Data
	}
	s.states.Durable(room, pack)
	return root
}

// resolve merges states and stores the result.
func (s *server) resolve(roots []snapshot.Ref) snapshot.Ref {
	s.nid++
	pack := s.nid
	edit, err := Resolve(context.Background(), s.input(roots), pack)
	if err != nil {
		s.t.Fatalf("resolve: %v", err)
	}
	return s.commit(edit, pack)
}

// before returns the state before an event that follows others.
func (s *server) before(prev []string) snapshot.Ref {
	if len(prev) == 0 {
		return 0
	}
	var roots []snapshot.Ref
	for _, id := range prev {
		roots = append(roots, s.byID[id].after)
	}
	return s.resolve(roots)
}

// atState is the authrules.State of a snapshot.
type atState struct {
	s    *server
	root snapshot.Ref
}

func (a atState) Event(typ, key string) (*pdu.Event, error) {
	nid, err := a.s.tree(a.root).Get(context.Background(), typ, key)
	if err != nil || nid == 0 {
		return nil, err
	}
	return a.s.byNID[nid].Event, nil
}

// receive takes an event whose prev_events and auth_events are known, and judges it as a
// server does.
func (s *server) receive(ev *pdu.Event) *record {
	before := s.before(ev.PrevEventIDs())
	r := s.add(ev)
	r.rejected = !s.authorised(ev, before)
	r.after = before
	if ev.IsState() && !r.rejected {
		e := s.tree(before).Edit(r.nid)
		e.Set(ev.Type, *ev.StateKey, r.nid)
		r.after = s.commit(e, r.nid)
	}
	return r
}

// add enters an event into the tables.
func (s *server) add(ev *pdu.Event) *record {
	s.nid++
	r := &record{Event: ev, nid: s.nid}
	s.byID[ev.ID], s.byNID[r.nid] = r, r
	if ev.IsState() {
		var auth []int64
		replaces := int64(0)
		for _, id := range ev.AuthEventIDs() {
			a := s.byID[id]
			auth = append(auth, a.nid)
			if a.Is(ev.Type, *ev.StateKey) {
				replaces = a.nid
			}
		}
		row, err := s.auth.Add(context.Background(), r.nid, auth, replaces)
		if err != nil {
			s.t.Fatal(err)
		}
		s.rows[r.nid] = row
		s.order = append(s.order, r.nid)
		s.auth.Durable(r.nid)
	}
	return r
}

func (s *server) authorised(ev *pdu.Event, before snapshot.Ref) bool {
	var cited authrules.EventList
	for _, id := range ev.AuthEventIDs() {
		cited = append(cited, s.byID[id].Event)
	}
	if err := authrules.CheckStateIndependent(ev, cited, func(id string) bool { return s.byID[id].rejected }); err != nil {
		return false
	}
	if s.v.RoomIDIsCreateHash && ev.Type != pdu.TypeCreate {
		create, err := atState{s, before}.Event(pdu.TypeCreate, "")
		if err != nil {
			s.t.Fatal(err)
		}
		if create == nil {
			return false
		}
		cited = append(cited, create)
	}
	for _, state := range []authrules.State{cited, atState{s, before}} {
		err := authrules.Check(ev, state)
		if refused := (*authrules.Error)(nil); errors.As(err, &refused) {
			return false
		}
		if err != nil {
			s.t.Fatal(err)
		}
	}
	return true
}

// authFor selects the auth events of an event on top of a state.
func (s *server) authFor(root snapshot.Ref, d *draft) []string {
	content, err := json.Marshal(d.content)
	if err != nil {
		s.t.Fatal(err)
	}
	var out []string
	for _, k := range authrules.Required(s.v, authrules.Header{Type: d.typ, StateKey: d.key, Sender: d.sender, Content: content}) {
		ev, err := atState{s, root}.Event(k.Type, k.StateKey)
		if err != nil {
			s.t.Fatal(err)
		}
		if ev != nil {
			out = append(out, ev.ID)
		}
	}
	return out
}

// stateOf returns a state by event ID.
func (s *server) stateOf(root snapshot.Ref) map[place]string {
	out := map[place]string{}
	err := s.tree(root).Walk(context.Background(), func(nid int64) error {
		e := s.byNID[nid]
		out[place{e.Type, *e.StateKey}] = e.ID
		return nil
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return out
}
