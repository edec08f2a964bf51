package syncapi

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path"
	"strings"
	"testing"

	"github.com/myelin-im/myelin/accounts"
	"github.com/myelin-im/myelin/e2ee"
	"github.com/myelin-im/myelin/ephemeral"
	"github.com/myelin-im/myelin/push"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/storage"
	"github.com/myelin-im/myelin/storage/storagetest"
)

// benchWorld measures requests on both databases: of a server that has just started (cold), and of one that has answered
// the same before (warm).
func benchWorld(b *testing.B, fill func(w *world) (path string)) {
	benchRequests(b, func(w *world) map[string]*http.Request {
		return map[string]*http.Request{"": httptest.NewRequest("GET", "/_matrix/client/v3"+fill(w), nil)}
	})
}

// benchRequests measures requests by name, whose bodies, if any, can be read again.
func benchRequests(b *testing.B, fill func(w *world) map[string]*http.Request) {
	for _, dialect := range []storage.Dialect{storage.SQLite, storage.PostgreSQL} {
		db := storagetest.Open(b, dialect, roomserver.Schema, accounts.Schema, e2ee.Schema, ephemeral.Schema, push.Schema, Schema)
		w := newWorld(b, db)
		for name, r := range fill(w) {
			b.Run(path.Join(dialect.String(), name, "cold"), func(b *testing.B) {
				for b.Loop() {
					b.StopTimer()
					w := newWorld(b, db)
					b.StartTimer()
					w.ask(b, r)
				}
			})
			b.Run(path.Join(dialect.String(), name, "warm"), func(b *testing.B) {
				w.ask(b, r)
				b.ReportAllocs()
				for b.Loop() {
					w.ask(b, r)
				}
			})
		}
	}
}

// ask makes a request of alice's whose answer nobody reads.
func (w *world) ask(b *testing.B, r *http.Request) {
	if r.GetBody != nil {
		r.Body, _ = r.GetBody() // never fails
	}
	r.Header.Set("Authorization", "Bearer "+alice+" D")
	answer := unreadAnswer{header: http.Header{}}
	w.router.ServeHTTP(&answer, r)
	if answer.status != 200 {
		b.Fatalf("%s: %d", r.URL, answer.status)
	}
	b.ReportMetric(float64(answer.bytes), "bytes")
}

// unreadAnswer is an answer of which only the size is kept.
type unreadAnswer struct {
	header        http.Header
	status, bytes int
}

func (u *unreadAnswer) Header() http.Header         { return u.header }
func (u *unreadAnswer) WriteHeader(status int)      { u.status = status }
func (u *unreadAnswer) Write(p []byte) (int, error) { u.bytes += len(p); return len(p), nil }

// BenchmarkMembers is GET /members of a room with 2,000.
func BenchmarkMembers(b *testing.B) {
	benchWorld(b, func(w *world) string {
		users := []string{alice}
		for i := range 1999 {
			users = append(users, fmt.Sprintf("@user%d:hs", i))
		}
		return "/rooms/" + w.room(users...).ID + "/members"
	})
}

// fillRooms puts alice into rooms with 30 state events and 20 messages each, all hers.
func (w *world) fillRooms(b *testing.B, count int) {
	for range count {
		room := w.room(alice)
		for i := range 23 {
			key := fmt.Sprint(i)
			_, err := w.rooms.Send(context.Background(), room.ID, roomserver.Draft{
				Sender: alice, Type: "org.example", StateKey: &key, Content: json.RawMessage(`{"body":"some state"}`),
			})
			if err != nil {
				b.Fatal(err)
			}
		}
		for range 20 {
			w.say(room, alice, "")
		}
	}
}

// BenchmarkInitialSync is the first sync of an account in 100 rooms.
func BenchmarkInitialSync(b *testing.B) {
	benchWorld(b, func(w *world) string {
		w.fillRooms(b, 100)
		return "/sync"
	})
}

// BenchmarkSlidingSync is the first sliding sync of an account in 500 rooms: of the 20 most active ones, and of the same by
// a filter that asks of each room whether it is encrypted.
func BenchmarkSlidingSync(b *testing.B) {
	benchRequests(b, func(w *world) map[string]*http.Request {
		w.fillRooms(b, 500)
		requests := map[string]*http.Request{}
		for name, filters := range map[string]string{"all": "{}", "filtered": `{"is_encrypted":false}`} {
			r, err := http.NewRequest("POST", "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync", strings.NewReader(
				`{"lists":{"a":{"ranges":[[0,19]],"timeline_limit":20,"required_state":[["*","*"]],"filters":`+filters+`}}}`))
			if err != nil {
				b.Fatal(err)
			}
			requests[name] = r
		}
		return requests
	})
}

// BenchmarkMessages is a page of 100 messages.
func BenchmarkMessages(b *testing.B) {
	benchWorld(b, func(w *world) string {
		room := w.room(alice)
		for range 1000 {
			w.say(room, alice, "")
		}
		return "/rooms/" + room.ID + "/messages?dir=b&limit=100"
	})
}
