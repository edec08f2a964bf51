package roomserver

import (
	"context"
	"fmt"
	"hash/fnv"

	"github.com/myelin-im/myelin/storage"
)

// relationSum stands for a set of rows of relations, whatever their order.
type relationSum struct{ rows, hash uint64 }

func (s *relationSum) add(nid, anchor, sub, kind int64, target, id, relType, typ, sender []byte) {
	h := fnv.New64a()
	fmt.Fprintf(h, "%d %d %d %d %q %q %q %q %q", nid, anchor, sub, kind, target, id, relType, typ, sender)
	s.rows++
	s.hash += h.Sum64()
}

// relation counts the row that an event should have in relations.
func (c *roomCheck) relation(e *Event) {
	if e.Anchor == 0 || e.flags&flagRedacted != 0 {
		return
	}
	for _, r := range indexedOf(e.Event) {
		c.related.add(e.NID, e.Anchor, e.Sub, int64(r.kind), eventKey(r.Target), eventKey(e.ID), []byte(r.Type), []byte(e.Type), []byte(e.Sender))
	}
}

// relations compares the index of relations with what the events say.
func (c *roomCheck) relations(ctx context.Context) error {
	var stored relationSum
	err := c.s.db.Read(ctx, func(tx *storage.Tx) error {
		stored = relationSum{}
		rows := tx.Query(`SELECT child, anchor, sub, kind, target, event_id, rel_type, type, sender FROM relations WHERE room = $1`, c.room.NID)
		var nid, anchor, sub, kind int64
		var target, id, relType, typ, sender []byte
		for rows.Next() {
			rows.Scan(&nid, &anchor, &sub, &kind, &target, &id, &relType, &typ, &sender)
			stored.add(nid, anchor, sub, kind, target, id, relType, typ, sender)
		}
		return rows.Close()
	})
	if err == nil && stored != c.related {
		c.bad("%d relations are indexed, %d are in the events, and they are not the same", stored.rows, c.related.rows)
	}
	return err
}
