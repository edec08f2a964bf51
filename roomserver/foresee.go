package roomserver

import (
	"fmt"
	"maps"
	"slices"

	"github.com/myelin-im/myelin/storage"
)

// foreseeFrom is how many events a turn must receive to ask at once for all that concerns them.
const foreseeFrom = 8

// foreseen is what the database had to say of events before the first of them was judged. Events are named by their keys.
type foreseen struct {
	asked     map[string]bool
	unwritten []*Event           // events of the room that were not in the database then
	redacted  map[string][]int64 // the numbers of redactions, ascending, by what they redact
	related   map[string]bool    // those to which others relate
}

// foresee asks at once for what events refer to and for what refers to them, if there are some, so that not each of them
// has to ask.
func (t *Turn) foresee(in []Incoming) error {
	t.resolved = newResolutions()
	if len(in) < foreseeFrom || t.created {
		return nil
	}
	own := make([]string, len(in))
	var cited []string
	for i := range in {
		p := in[i].Event
		own[i] = p.ID
		cited = slices.Concat(cited, p.PrevEventIDs(), p.AuthEventIDs())
	}
	if t.room.Version.RoomIDIsCreateHash {
		cited = append(cited, "$"+t.room.ID[1:])
	}
	if err := t.foreseeReferences(own); err != nil {
		return err
	}
	all := slices.Concat(cited, own)
	slices.Sort(all)
	return t.look(slices.Compact(all))
}

// foreseeReferences asks which events redact some events or relate to them.
func (t *Turn) foreseeReferences(ids []string) error {
	f := &foreseen{asked: map[string]bool{}, unwritten: t.unwritten()}
	for _, id := range ids {
		f.asked[string(eventKey(id))] = true
	}
	err := t.s.db.Read(t.ctx, func(tx *storage.Tx) error {
		f.redacted, f.related = map[string][]int64{}, map[string]bool{}
		for batch := range slices.Chunk(ids, lookBatch) {
			if err := f.read(tx, lookArgs(t.room, batch)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("what refers to %d events: %w", len(ids), err)
	}
	t.ahead = f
	return nil
}

// read asks about a batch of events.
func (f *foreseen) read(tx *storage.Tx, args []any) error {
	var key []byte
	var nid int64
	rows := tx.Query(`SELECT target, redaction FROM redactions WHERE room = $1 AND target IN `+storage.In(lookBatch, 2)+` ORDER BY redaction`, args...)
	for rows.Next() {
		rows.Scan(&key, &nid)
		f.redacted[string(key)] = append(f.redacted[string(key)], nid)
	}
	if err := rows.Close(); err != nil {
		return err
	}
	rows = tx.Query(`SELECT DISTINCT target FROM relations WHERE room = $1 AND target IN `+storage.In(lookBatch, 2), args...)
	for rows.Next() {
		rows.Scan(&key)
		f.related[string(key)] = true
	}
	return rows.Close()
}

// lookArgs are the parameters of a query about up to lookBatch events of a room. There are always as many of them, so
// that one prepared statement serves all.
func lookArgs(room *Room, ids []string) []any {
	args := make([]any, 1, lookBatch+1)
	args[0] = room.NID
	for i := range lookBatch {
		args = append(args, eventKey(ids[min(i, len(ids)-1)]))
	}
	return args
}

// unwritten lists the room's events that were not in the database when it was asked what refers to others, those of the
// turn among them. They may get there meanwhile, so this comes first.
func (t *Turn) unwritten() []*Event {
	if t.ahead != nil {
		return slices.Concat(t.ahead.unwritten, t.events)
	}
	t.room.mu.Lock()
	defer t.room.mu.Unlock()
	return slices.Collect(maps.Values(t.room.pending.byNID))
}

// redactionsOf lists the numbers of the redactions of an event that are in the database.
func (t *Turn) redactionsOf(id string) ([]int64, error) {
	key := eventKey(id)
	if t.ahead != nil && t.ahead.asked[string(key)] {
		return t.ahead.redacted[string(key)], nil
	}
	nids, err := storage.ReadList[int64](t.ctx, t.s.db, `SELECT redaction FROM redactions WHERE room = $1 AND target = $2 ORDER BY redaction`, t.room.NID, key)
	if err != nil {
		return nil, fmt.Errorf("redactions of %s: %w", id, err)
	}
	return nids, nil
}

// relatedTo tells whether the database has events that relate to another one.
func (t *Turn) relatedTo(id string) (found bool, err error) {
	key := eventKey(id)
	if t.ahead != nil && t.ahead.asked[string(key)] {
		return t.ahead.related[string(key)], nil
	}
	err = t.s.db.Read(t.ctx, func(tx *storage.Tx) (err error) {
		var one int64
		found, err = tx.Get(`SELECT 1 FROM relations WHERE room = $1 AND target = $2 LIMIT 1`, []any{t.room.NID, key}, &one)
		return err
	})
	return found, err
}
