package roomserver

import (
	"context"
	"fmt"

	"github.com/myelin-im/myelin/roomserver/pdu"
	"github.com/myelin-im/myelin/roomserver/snapshot"
	"github.com/myelin-im/myelin/storage"
)

// Relationship is how an event is placed in a thread in the sense of MSC2836, where anything may be a reply to anything: by
// its m.relationship, or else its m.relates_to. It is empty for a redacted event, of which that is lost to most servers.
func (e *Event) Relationship() Relation {
	if e.flags&flagRedacted != 0 {
		return Relation{}
	}
	return relationshipOf(e.Event)
}

func relationshipOf(p *pdu.Event) Relation {
	r, ok := linkIn(p, "m.relationship")
	if !ok {
		r, _ = linkOf(p)
	}
	return Relation{r.Type, r.Target}
}

// Related is an event that relates to another one in any way. Its ID is always set.
type Related struct {
	Child
	RelType string
}

// Relationships returns the events of a room's timeline that relate to one with this id, oldest first: at most 10,000 of the
// newest. What is known of an event that has both m.relationship and m.relates_to counts for both targets.
func (s *Server) Relationships(ctx context.Context, room *Room, target string) ([]Related, error) {
	var list []Related
	err := s.db.Read(ctx, func(tx *storage.Tx) error {
		list = nil
		rows := tx.Query(`SELECT r.anchor, r.sub, r.child, r.kind, r.rel_type, r.type, r.sender, r.event_id, e.ts, e.state_before
			FROM relations r JOIN events e ON e.nid = r.child WHERE r.room = $1 AND r.target = $2
			ORDER BY r.anchor DESC, r.sub DESC LIMIT $3`, room.NID, eventKey(target), int64(maxChildren))
		var id []byte
		var kind, before int64
		for rows.Next() {
			var r Related
			rows.Scan(&r.Anchor, &r.Sub, &r.NID, &kind, &r.RelType, &r.Type, &r.Sender, &id, &r.OriginServerTS, &before)
			r.Kind, r.StateBefore, r.ID = RelationKind(kind), snapshot.Ref(before), eventIDFromKey(room.Version, id)
			list = append(list, r)
		}
		return rows.Close()
	})
	if err != nil {
		return nil, fmt.Errorf("relationships of %s: %w", target, err)
	}
	for i, j := 0, len(list)-1; i < j; i, j = i+1, j-1 {
		list[i], list[j] = list[j], list[i]
	}
	return list, nil
}
