package syncapi

import (
	"fmt"
	"testing"
	"time"

	"github.com/myelin-im/myelin/roomserver"
)

// TestPulse has many members of a room read and type at once: others are woken at first, and then together.
func TestPulse(t *testing.T) {
	eachWorld(t, func(t *testing.T, w *world) {
		room := w.room(alice)
		const members = 60
		for i := range members {
			w.member(room.ID, fmt.Sprintf("@u%d:hs", i), roomserver.Join)
		}
		waiter, done := w.sync.tracker.wait(alice, everything)
		defer done()
		woken := func(within time.Duration) bool {
			select {
			case <-waiter.wake:
				return true
			case <-time.After(within):
				return false
			}
		}
		begun := time.Now()
		w.typing(room, "@u0:hs", `{"typing":true}`)
		if !woken(time.Minute) {
			t.Fatal("not woken for the first one")
		}
		rest := members * pulsePause
		for i := range 20 {
			w.typing(room, fmt.Sprintf("@u%d:hs", i+1), `{"typing":true}`)
		}
		atOnce := time.Since(begun) < rest/2 // else a slow machine had the room rest meanwhile
		if atOnce && woken(0) {
			t.Error("woken again at once")
		}
		if !woken(time.Minute) {
			t.Error("not woken for the others")
		}
		if took := time.Since(begun); took < rest {
			t.Errorf("woken after %v, want %v", took, rest)
		}
		time.Sleep(2 * rest)
		if woken(0) && atOnce {
			t.Error("woken once more")
		}
		// Messages do not wait.
		w.typing(room, "@u0:hs", `{"typing":false}`)
		if !woken(time.Minute) {
			t.Error("not woken after a rest")
		}
		w.say(room, "@u1:hs", "")
		if !woken(time.Minute) {
			t.Error("not woken for a message")
		}
	})
}
