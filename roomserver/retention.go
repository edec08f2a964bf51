package roomserver

import (
	"context"
	"fmt"
	"time"

	"github.com/tidwall/gjson"

	"github.com/myelin-im/myelin/roomserver/snapshot"
	"github.com/myelin-im/myelin/storage"
)

// TypeRetention is the state event in which a room says how long its messages are kept (MSC1763).
const TypeRetention = "m.room.retention"

// Retention is this server's policy on how long messages are kept (MSC1763). State events are kept as long as the
// room, so the policy is only about messages. The zero value keeps everything.
type Retention struct {
	// Enabled tells whether messages expire at all.
	Enabled bool
	// Default is the lifetime in rooms that say nothing of it; 0 is forever.
	Default time.Duration
	// AtLeast and AtMost bound every lifetime, whatever the room says; 0 is no bound.
	AtLeast, AtMost time.Duration
}

// Otherwise is how long messages live in rooms that say nothing of it; 0 is forever.
func (p Retention) Otherwise() time.Duration { return p.lifetime(nil) }

// lifetime is how long messages live in a room with this m.room.retention event, which may be nil; 0 is forever.
func (p Retention) lifetime(e *Event) time.Duration {
	if !p.Enabled {
		return 0
	}
	life := p.Default
	if e != nil {
		if d, ok := maxLifetime(e.Content()); ok {
			life = d
		}
	}
	if life > 0 && life < p.AtLeast {
		life = p.AtLeast
	}
	if p.AtMost > 0 && (life == 0 || life > p.AtMost) {
		life = p.AtMost
	}
	return life
}

// maxRetention bounds the lifetimes that rooms set, so that they fit a time.Duration: more is forever.
const maxRetention = 200 * 365 * 24 * time.Hour

// maxLifetime reads the content of m.room.retention. ok is false where it sets no lifetime or contradicts itself.
func maxLifetime(content []byte) (d time.Duration, ok bool) {
	ms := func(name string) (int64, bool) {
		v := gjson.GetBytes(content, name)
		if v.Type != gjson.Number || v.Num < 0 || v.Num != float64(v.Int()) {
			return 0, false
		}
		return v.Int(), true
	}
	longest, ok := ms("max_lifetime")
	if !ok {
		return 0, false
	}
	if shortest, ok := ms("min_lifetime"); ok && shortest > longest {
		return 0, false
	}
	if longest > maxRetention.Milliseconds() {
		return 0, true
	}
	return max(time.Duration(longest)*time.Millisecond, time.Millisecond), true
}

// roomLifetime is the lifetime of messages as it follows from one state of a room.
type roomLifetime struct {
	root snapshot.Ref
	life time.Duration
}

// MaxLifetime returns how long messages of a room are kept by its current state and the server's policy; 0 is forever.
func (s *Server) MaxLifetime(ctx context.Context, room *Room) (time.Duration, error) {
	if !s.retention.Enabled {
		return 0, nil
	}
	root := room.Head().State
	if known := room.lifetime.Load(); known != nil && known.root == root {
		return known.life, nil
	}
	e, err := s.StateEvent(ctx, room, root, TypeRetention, "")
	if err != nil {
		return 0, fmt.Errorf("retention of %s: %w", room.ID, err)
	}
	life := s.retention.lifetime(e)
	room.lifetime.Store(&roomLifetime{root, life})
	return life, nil
}

// Horizon returns the origin_server_ts, in milliseconds, before which messages of a room have expired: they are shown to
// nobody any more. It is 0 where messages are kept forever.
func (s *Server) Horizon(ctx context.Context, room *Room) (int64, error) {
	life, err := s.MaxLifetime(ctx, room)
	if err != nil || life == 0 {
		return 0, err
	}
	return max(s.now().Add(-life).UnixMilli(), 0), nil
}

// Expired tells whether a message with an origin_server_ts, in milliseconds, has outlived the room's retention policy.
func (s *Server) Expired(ctx context.Context, room *Room, ts int64) (bool, error) {
	horizon, err := s.Horizon(ctx, room)
	return ts < horizon, err
}

// Retained returns the numbers of rooms in which messages expire, or of whose state a purge has left more than is
// needed: those of a page of rooms with numbers above after. last is where the next page begins, 0 if this was the last.
func (s *Server) Retained(ctx context.Context, after int64, limit int) (nids []int64, last int64, err error) {
	type candidate struct {
		nid, state int64
		id         string
		seed       []byte
		unswept    bool
	}
	var page []candidate
	err = s.db.Read(ctx, func(tx *storage.Tx) error {
		page = page[:0]
		rows := tx.Query(`SELECT r.nid, r.room_id, r.seed, h.state, EXISTS (SELECT 1 FROM room_purges p WHERE p.room = r.nid AND NOT p.swept)
			FROM rooms r JOIN room_heads h ON h.room = r.nid WHERE r.nid > $1 ORDER BY r.nid LIMIT $2`, after, int64(limit))
		for rows.Next() {
			var c candidate
			rows.Scan(&c.nid, &c.id, &c.seed, &c.state, &c.unswept)
			page = append(page, c)
		}
		return rows.Close()
	})
	if err != nil {
		return nil, 0, fmt.Errorf("rooms with expiring messages: %w", err)
	}
	everywhere := s.retention.lifetime(nil) > 0
	for _, c := range page {
		expires := c.unswept || everywhere
		if !expires && s.retention.Enabled {
			// Rooms are not loaded for this: those that are in use would have to make place.
			var seed [16]byte
			copy(seed[:], c.seed)
			nid, err := s.states.At(c.nid, seed, snapshot.Ref(c.state)).Get(ctx, TypeRetention, "")
			if err != nil {
				return nil, 0, fmt.Errorf("retention of %s: %w", c.id, err)
			}
			expires = nid != 0
		}
		if expires {
			nids = append(nids, c.nid)
		}
	}
	if len(page) == limit {
		last = page[len(page)-1].nid
	}
	return nids, last, nil
}
