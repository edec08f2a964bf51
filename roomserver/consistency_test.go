package roomserver_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/storage"
	"github.com/myelin-im/myelin/storage/storagetest"
)

// TestCheckConsistencyFinds damages a sound database in one way after the other. The check must see each of them, or it
// proves nothing about the tests that end with it.
func TestCheckConsistencyFinds(t *testing.T) {
	storagetest.Each(t, []storage.Schema{roomserver.Schema}, func(t *testing.T, db *storage.DB) {
		ctx := context.Background()
		s := newServer(t, db)
		for _, version := range []string{"2", "12"} {
			id := newRoom(t, s, version, roomserver.PublicChat)
			if _, err := s.SetMembership(ctx, roomserver.MembershipChange{RoomID: id, Sender: bob, Target: bob, Membership: roomserver.Join}); err != nil {
				t.Fatal(err)
			}
			target := send(t, s, id, bob, "redacted")
			if _, err := s.Send(ctx, id, roomserver.Draft{Sender: bob, Type: "m.room.redaction", Content: json.RawMessage(`{}`), Redacts: target}); err != nil {
				t.Fatal(err)
			}
			send(t, s, id, alice, "last")
		}
		if err := newServer(t, db).CheckConsistency(ctx); err != nil {
			t.Fatalf("a sound database: %v", err)
		}
		run := func(sql string, args ...any) {
			t.Helper()
			err := db.Write(ctx, func(tx *storage.Tx) error {
				_, err := tx.Exec(sql, args...)
				return err
			})
			if err != nil {
				t.Fatalf("%s: %v", sql, err)
			}
		}
		const last = `(SELECT max(nid) FROM events)`
		for _, test := range []struct{ damage, repair, want string }{
			{`UPDATE room_members SET event = event + 1000000`, `UPDATE room_members SET event = event - 1000000`, "but is join by event"},
			{`UPDATE room_members SET local = NOT local`, `UPDATE room_members SET local = NOT local`, "is listed as local"},
			{`UPDATE room_heads SET state = state - 4096`, `UPDATE room_heads SET state = state + 4096`, ""},
			{`UPDATE room_heads SET pos = pos - 1`, `UPDATE room_heads SET pos = pos + 1`, "the head is at"},
			{`UPDATE state_log SET new_root = new_root + 4096 WHERE pos = 1`, `UPDATE state_log SET new_root = new_root - 4096 WHERE pos = 1`, "does not continue the one before"},
			{`UPDATE events SET state_before = state_before - 4096 WHERE nid = ` + last, `UPDATE events SET state_before = state_before + 4096 WHERE nid = ` + last, "is not the one after its only parent"},
			// What is not repaired stays, and is found beside what follows.
			{`UPDATE events SET flags = 0`, "", "not marked as redacted"},
			{`DELETE FROM room_members WHERE room = (SELECT min(nid) FROM rooms)`, "", "members are not listed"},
		} {
			run(test.damage)
			expect(t, newServer(t, db).CheckConsistency(ctx), test.damage, test.want)
			if test.repair != "" {
				run(test.repair)
			}
		}
		run(`UPDATE room_members SET membership = $1 WHERE user_id = $2`, roomserver.Leave, bob)
		expect(t, newServer(t, db).CheckConsistency(ctx), "another membership", "is listed as leave by event")
		run(`UPDATE events SET event_id = $1 WHERE nid = `+last, bytes.Repeat([]byte("x"), 32))
		expect(t, newServer(t, db).CheckConsistency(ctx), "another id", "by its content")
	})
}

func expect(t *testing.T, err error, damage, want string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), want) || want != "" && !errors.Is(err, roomserver.ErrInconsistent) {
		t.Errorf("after %s: %v, want %q", damage, err, want)
	}
}
