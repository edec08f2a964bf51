package scenario

import (
	"net/http"
	"testing"

	. "github.com/myelin-im/myelin/test/harness"
)

// Who repeats the request for a delayed event gets the same answer, also without saying what the event is.
func TestDelayedEventAskedForAgain(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice := s.Register(t, "alice")
		id := alice.Create(J{})
		path := Path("/rooms/%s/send/%s/%s", id, "m.room.message", Txn())
		const delay = "?org.matrix.msc4140.delay=3600000"
		alice.Refused(http.StatusBadRequest, "M_NOT_JSON", "PUT", path, nil)
		alice.Refused(http.StatusBadRequest, "M_NOT_JSON", "PUT", path+delay, nil)
		first := alice.Must("PUT", path+delay, J{"msgtype": "m.text", "body": "later"}).JSON.Get("delay_id").Str
		for _, body := range []any{nil, J{"msgtype": "m.text", "body": "later"}} {
			if again := alice.Must("PUT", path+delay, body).JSON.Get("delay_id").Str; first == "" || again != first {
				t.Errorf("asked again with %v: %q, want %q", body, again, first)
			}
		}
	})
}
