package roomserver

import (
	"fmt"
	"slices"
	"testing"

	"github.com/myelin-im/myelin/storage"
)

// TestIndexOlderRelationships takes away the rows of relationships, as if their events were older than these.
func TestIndexOlderRelationships(t *testing.T) {
	eachServer(t, func(t *testing.T, s *Server) {
		for _, version := range []string{"1", "12"} {
			w := newWorld(t, s, version)
			target := w.accept(w.build(nil, "@a:remote", "m.room.message", "", text))
			answer := func(more string) *Event {
				content := fmt.Sprintf(`{"m.relationship":{"event_id":%q,"rel_type":"m.reference"}%s}`, target.ID, more)
				return w.accept(w.build(nil, "@b:remote", "m.room.message", "", content))
			}
			var want []string
			for range 5 {
				want = append(want, answer("").ID)
			}
			want = append(want, answer(`,"m.relates_to":{"event_id":"`+target.ID+`","rel_type":"m.thread"}`).ID)
			redacted := answer("")
			w.accept(w.build(nil, "@b:remote", "m.room.redaction", redacted.ID, `{}`))
			err := s.db.Write(ctx, func(tx *storage.Tx) error {
				if _, err := tx.Exec(`DELETE FROM relations WHERE kind = 5`); err != nil {
					return err
				}
				_, err := tx.Exec(`INSERT INTO relationships_due (id, after, up_to) SELECT 1, 0, max(nid) FROM events HAVING max(nid) IS NOT NULL`)
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			if err := s.CheckConsistency(ctx); err == nil {
				t.Error("nobody misses the rows")
			}
			want = append(want, answer("").ID) // it has a row
			pages := 1
			for more := true; more; pages++ {
				if more, err = s.indexDue(ctx, 3); err != nil || pages > 1000 {
					t.Fatalf("page %d: %v", pages, err)
				}
			}
			list, err := s.Relationships(ctx, w.room, target.ID)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, r := range list {
				got = append(got, r.ID)
			}
			if !slices.Equal(got, want) || pages < 5 {
				t.Errorf("version %s: after %d pages %v, want %v", version, pages, got, want)
			}
			if more, err := s.indexDue(ctx, 3); more || err != nil {
				t.Errorf("there is more to do (%v)", err)
			}
			w.consistent(s)
		}
	})
}
