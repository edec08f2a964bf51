package roomserver

import (
	"context"
	"fmt"
	"hash/maphash"
	"slices"
	"strings"
	"sync"

	"github.com/myelin-im/myelin/roomserver/snapshot"
	"github.com/myelin-im/myelin/storage"
)

// Child is an event that relates to another one in a way that servers sum up: m.replace, m.thread, m.reference.
// Its event is in the timeline and not redacted.
type Child struct {
	// NID, Sender, Type and OriginServerTS are those of the event, Anchor and Sub its place.
	NID            int64
	Anchor, Sub    int64
	OriginServerTS int64
	Sender, Type   string
	// ID is its id; empty for replies in threads.
	ID string
	// StateBefore is the root of the state before it.
	StateBefore snapshot.Ref
	// Kind is never OtherRelation or Annotation.
	Kind RelationKind
}

// Token is the child's place in the room's history order.
func (c *Child) Token() HistoryToken { return HistoryToken{c.Anchor, c.Sub} }

// Children are the events that relate to one event. They are shared and not to be changed.
type Children struct {
	// List is in history order, at most maxChildren of the newest.
	List []Child
	// OlderReplies is how many older replies of a thread are not in the list.
	OlderReplies int
}

const (
	// maxChildren bounds how many children of one event are looked at.
	maxChildren = 10_000
	// relationShards and shardBytes bound the memory for relations to 32 MiB.
	relationShards = 16
	shardBytes     = 2 << 20
	// entryBytes and childBytes estimate what an entry and each of its children take.
	entryBytes = 200
	childBytes = 144
)

// relationCache knows the children of recently used events. It follows the log, so that a reader who asks about
// an event with a place beyond floor, and finds nothing, knows that nothing relates to it: fresh events cost no
// query, however many readers they have.
type relationCache struct {
	seed   maphash.Seed
	shards [relationShards]relationShard
}

type relationKey struct {
	room   int64
	target string
}

// relationShard is a part of the cache. One that is full forgets everything, which over many shards comes to
// the same as forgetting at random.
type relationShard struct {
	mu      sync.Mutex
	entries map[relationKey]*relationEntry
	bytes   int
	// floor is the position above which every relation is in entries; applied is the last one seen.
	floor, applied int64
	// epoch grows with every change, so that a reader that raced with one does not keep what it read.
	epoch uint64
}

// relationEntry is what is known of one target.
type relationEntry struct {
	// complete tells that children is all there is; otherwise the database has to be asked.
	complete bool
	Children
}

func (e *relationEntry) cost() int { return entryBytes + len(e.List)*childBytes }

func (c *relationCache) init(head int64) {
	c.seed = maphash.MakeSeed()
	for i := range c.shards {
		s := &c.shards[i]
		s.entries, s.floor, s.applied = map[relationKey]*relationEntry{}, head, head
	}
}

func (c *relationCache) shard(target string) *relationShard {
	return &c.shards[maphash.String(c.seed, target)%relationShards]
}

// put replaces an entry; the caller holds mu.
func (s *relationShard) put(key relationKey, e *relationEntry) {
	if old := s.entries[key]; old != nil {
		s.bytes -= old.cost()
		delete(s.entries, key)
	}
	if s.bytes+e.cost() > shardBytes {
		s.entries, s.bytes, s.floor = map[relationKey]*relationEntry{}, 0, s.applied
		s.epoch++ // what was read before may lack what has just been forgotten
		if e.cost() > shardBytes {
			e = &relationEntry{}
		}
	}
	s.entries[key] = e
	s.bytes += e.cost()
}

// unsure takes note that an event has relations that are older than itself.
func (c *relationCache) unsure(room int64, e *Event) {
	s := c.shard(e.ID)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.epoch++
	s.applied = max(s.applied, e.Anchor)
	s.put(relationKey{room, e.ID}, &relationEntry{})
}

// add takes in a relation that has become durable.
func (c *relationCache) add(room int64, r *related) {
	s := c.shard(r.Target)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.epoch++
	s.applied = max(s.applied, r.event.Anchor)
	key := relationKey{room, r.Target}
	old := s.entries[key]
	if old == nil || !old.complete || r.event.Sub != 0 {
		// What else relates to the target is not known here, or not where among it a backfilled event belongs.
		s.put(key, &relationEntry{})
		return
	}
	if r.kind != Replacement && r.kind != ThreadReply && r.kind != Reference {
		return
	}
	s.put(key, &relationEntry{complete: true, Children: old.with(r.child())})
}

// child is the form in which memory keeps a related event. The strings are copies, because those of an event
// keep all of its JSON.
func (r *related) child() Child {
	e := r.event
	c := Child{
		NID: e.NID, Anchor: e.Anchor, Sub: e.Sub, OriginServerTS: e.OriginServerTS, StateBefore: e.StateBefore, Kind: r.kind,
		Sender: strings.Clone(e.Sender), Type: strings.Clone(e.Type),
	}
	if r.kind != ThreadReply {
		c.ID = e.ID
	}
	return c
}

// with is the list with one more child. A list that others hold keeps its length.
func (l Children) with(c Child) Children {
	i, found := slices.BinarySearchFunc(l.List, c.Token(), func(c Child, t HistoryToken) int {
		switch at := c.Token(); {
		case at.Before(t):
			return -1
		case t.Before(at):
			return 1
		}
		return 0
	})
	if found {
		return l // whoever read the list read it after the commit
	}
	if i == len(l.List) {
		if i > 0 && l.List[i-1].Sender == c.Sender {
			c.Sender = l.List[i-1].Sender
		}
		if l.List = append(l.List, c); i >= maxChildren+maxChildren/4 {
			l = l.trim()
		}
		return l
	}
	l.List = slices.Insert(slices.Clone(l.List), i, c)
	return l
}

// trim keeps the newest children.
func (l Children) trim() Children {
	cut := len(l.List) - maxChildren
	for _, c := range l.List[:cut] {
		if c.Kind == ThreadReply {
			l.OlderReplies++
		}
	}
	l.List = slices.Clone(l.List[cut:])
	return l
}

// remove forgets a relation whose event was redacted.
func (c *relationCache) remove(room int64, target string, nid int64) {
	s := c.shard(target)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.epoch++
	key := relationKey{room, target}
	old := s.entries[key]
	if old == nil || !old.complete {
		return
	}
	i := slices.IndexFunc(old.List, func(c Child) bool { return c.NID == nid })
	if i < 0 {
		if old.OlderReplies > 0 {
			s.put(key, &relationEntry{})
		}
		return
	}
	left := &relationEntry{complete: true, Children: old.Children}
	left.List = slices.Delete(slices.Clone(old.List), i, i+1)
	s.put(key, left)
}

// threadRoot tells that an event is known to have replies in a thread.
func (c *relationCache) threadRoot(room int64, id string) bool {
	s := c.shard(id)
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.entries[relationKey{room, id}]
	return e != nil && slices.ContainsFunc(e.List, func(c Child) bool { return c.Kind == ThreadReply })
}

// get returns the children of an event as far as memory knows them.
func (c *relationCache) get(room int64, e *Event) (list Children, known bool, epoch uint64) {
	s := c.shard(e.ID)
	s.mu.Lock()
	defer s.mu.Unlock()
	if entry := s.entries[relationKey{room, e.ID}]; entry != nil {
		return entry.Children, entry.complete, s.epoch
	}
	return Children{}, e.Sub == 0 && e.Anchor > s.floor, s.epoch
}

// loaded keeps what was read since epoch.
func (c *relationCache) loaded(room int64, e *Event, list Children, epoch uint64) {
	s := c.shard(e.ID)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.epoch == epoch {
		s.put(relationKey{room, e.ID}, &relationEntry{complete: true, Children: list})
	}
}

// asked is an event of which memory does not know what relates to it.
type asked struct {
	room  *Room
	event *Event
	// key is eventKey of its id, epoch that of its part of the cache.
	key   []byte
	epoch uint64
}

// Children returns what relates to each of these events of a room, in the same order: edits, replies in threads and
// references. Events to which nothing relates, or which somebody asked about recently, cost no query.
func (s *Server) Children(ctx context.Context, room *Room, parents []*Event) ([]Children, error) {
	out := make([]Children, len(parents))
	var ask []asked
	var places []int // theirs in out
	for i, e := range parents {
		list, known, epoch := s.relations.get(room.NID, e)
		if out[i] = list; !known {
			ask, places = append(ask, asked{room, e, eventKey(e.ID), epoch}), append(places, i)
		}
	}
	for batch := range slices.Chunk(ask, eventBatch) {
		lists, err := s.readChildren(ctx, childrenInRoom, appendAsked(make([]any, 0, 1+eventBatch), batch, eventBatch), batch)
		if err != nil {
			return nil, fmt.Errorf("read relations of %s: %w", room.ID, err)
		}
		for i, list := range lists {
			out[places[i]] = list
		}
		places = places[len(batch):]
	}
	return out, nil
}

// childrenOf is a query for the children of up to n events of one room; appendAsked gives its arguments.
func childrenOf(n int) string {
	return `SELECT r.room, r.target, r.anchor, r.sub, r.child, r.kind, r.type, r.sender, e.ts, e.state_before, e.event_id
		FROM relations r JOIN events e ON e.nid = r.child
		WHERE r.room = $1 AND r.kind IN (1, 2, 3) AND r.target IN ` + storage.In(n, 2)
}

// newestFirst makes of one such query, or of several together, one that readChildren can run.
const newestFirst = ` ORDER BY 1, 2, 3 DESC, 4 DESC`

var childrenInRoom = childrenOf(eventBatch) + newestFirst

// appendAsked appends the arguments of a query for the children of n events: their room and their keys. There may be fewer
// events, or none. It is always the same number of arguments, so that one prepared statement serves all.
func appendAsked(args []any, events []asked, n int) []any {
	room := int64(0) // no room has it
	if len(events) > 0 {
		room = events[0].room.NID
	}
	args = append(args, room)
	for _, a := range events {
		args = append(args, a.key)
	}
	for range n - len(events) {
		args = append(args, nil)
	}
	return args
}

// readChildren reads the children of some events into the cache, and returns them in the same order.
func (s *Server) readChildren(ctx context.Context, sql string, args []any, events []asked) ([]Children, error) {
	var found map[relationKey]*readList
	err := s.db.ReadOne(ctx, func(tx *storage.Tx) (err error) {
		found, err = scanChildren(tx.Query(sql, args...))
		return err
	})
	if err != nil {
		return nil, err
	}
	out := make([]Children, len(events))
	for i, a := range events {
		if l := found[relationKey{a.room.NID, string(a.key)}]; l != nil {
			l.name(a.room)
			out[i] = l.Children
		}
		s.relations.loaded(a.room.NID, a.event, out[i], a.epoch)
	}
	return out, nil
}

// readList is a list being read, newest first; ids are keys until name.
type readList struct {
	Children
	named bool
}

// name puts the list into history order and makes ids of its keys.
func (l *readList) name(room *Room) {
	if l.named {
		return
	}
	l.named = true
	slices.Reverse(l.List)
	for i := range l.List {
		if c := &l.List[i]; c.ID != "" {
			c.ID = eventIDFromKey(room.Version, []byte(c.ID))
		}
	}
}

// scanChildren makes lists of the rows of childrenOf, by the rooms and keys of the events that they relate to.
func scanChildren(rows *storage.Rows) (map[relationKey]*readList, error) {
	found := map[relationKey]*readList{}
	names := map[string]string{} // senders and types, each once
	intern := func(b []byte) string {
		v, ok := names[string(b)]
		if !ok {
			v = string(b)
			names[v] = v
		}
		return v
	}
	var target, typ, sender, id []byte
	var room, kind, before int64
	for rows.Next() {
		var c Child
		rows.Scan(&room, &target, &c.Anchor, &c.Sub, &c.NID, &kind, &typ, &sender, &c.OriginServerTS, &before, &id)
		l := found[relationKey{room, string(target)}]
		if l == nil {
			l = &readList{}
			found[relationKey{room, string(target)}] = l
		}
		c.Kind = RelationKind(kind)
		if len(l.List) == maxChildren {
			if c.Kind == ThreadReply {
				l.OlderReplies++
			}
			continue
		}
		c.StateBefore, c.Type, c.Sender = snapshot.Ref(before), intern(typ), intern(sender)
		if c.Kind != ThreadReply {
			c.ID = string(id)
		}
		l.List = append(l.List, c)
	}
	return found, rows.Close()
}
