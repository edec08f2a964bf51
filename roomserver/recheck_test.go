package roomserver

import (
	"slices"
	"testing"

	"github.com/myelin-im/myelin/roomserver/snapshot"
)

func TestRecheck(t *testing.T) {
	eachServer(t, func(t *testing.T, s *Server) {
		w := newWorld(t, s, "12")
		w.accept(w.build(nil, "@a:remote", "m.room.topic", "", `{"topic":"the right one"}`))
		w.accept(w.build(nil, "@d:remote", "m.room.member", "@d:remote", `{"membership":"leave"}`))
		want := w.stateIDs(w.room.Head().State)
		if changed, err := s.Recheck(ctx, w.room.ID); err != nil || len(changed) != 0 {
			t.Fatalf("a sound room: %v, %v", changed, err)
		}
		// Make the current state another one than that at the only extremity.
		_, err := s.Turn(ctx, w.room.ID, func(t *Turn) error {
			edit := t.s.tree(t.room, t.head.State).Edit(1 << 40)
			edit.Delete("m.room.topic", "")
			edit.Delete("m.room.member", "@d:remote")
			root, err := t.commit(edit, 1<<40)
			if err != nil {
				return err
			}
			return t.setCurrent(root)
		})
		if err != nil {
			t.Fatal(err)
		}
		wrong := w.room.Head()
		if equalMaps(w.stateIDs(wrong.State), want) {
			t.Fatal("the state was not changed")
		}
		changed, err := s.Recheck(ctx, w.room.ID)
		if err != nil || !slices.Equal(changed, []string{"m.room.member @d:remote", "m.room.topic "}) {
			t.Errorf("a damaged room: %q, %v", changed, err)
		}
		if got := w.stateIDs(w.room.Head().State); !equalMaps(got, want) {
			t.Errorf("state %v, want %v", got, want)
		}
		if at, err := s.StateAt(ctx, w.room, wrong.Pos); err != nil || at != wrong.State || at == snapshot.Ref(0) {
			t.Errorf("the state before the repair is %d, %v, want %d", at, err, wrong.State)
		}
		w.consistent(s)
	})
}
