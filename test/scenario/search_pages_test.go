package scenario

import (
	"fmt"
	"testing"

	. "github.com/myelin-im/myelin/test/harness"
)

// The number of all results is the same on every page. A full page has a token, whatever follows; the page after the
// last result is empty and has none.
func TestSearchPagesByTime(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice := s.Register(t, "alice")
		id := alice.Create(J{})
		for i := range 20 {
			alice.Text(id, fmt.Sprintf("sesame %d", i))
		}
		for _, order := range []string{"recent", "rank"} {
			body := J{"search_categories": J{"room_events": J{"search_term": "sesame", "order_by": order, "filter": J{"limit": 10}}}}
			path := Path("/search")
			eventually(func() bool { // the index is a little behind
				return alice.Must("POST", path, body).JSON.Get("search_categories.room_events.count").Int() == 20
			})
			for page, want := range []int{10, 10, 0} {
				r := alice.Must("POST", path, body).JSON.Get("search_categories.room_events")
				next := r.Get("next_batch").Str
				if n := len(r.Get("results").Array()); n != want || r.Get("count").Int() != 20 || (next != "") != (want > 0) {
					t.Errorf("%s, page %d: %d results of %d, next_batch %q", order, page, n, r.Get("count").Int(), next)
				}
				path = Path("/search") + "?next_batch=" + next
			}
		}
	})
}
