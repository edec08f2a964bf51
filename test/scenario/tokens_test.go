package scenario

import (
	"net/url"
	"testing"

	. "github.com/myelin-im/myelin/test/harness"
)

// Transaction ids belong to the device: with another access token it neither sends twice nor loses sight of what is its own.
//
// Spec: client-server API v1.19, "Transaction identifiers".
func TestTransactionIDsOutliveAccessTokens(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		s.Register(t, "alice")
		in := s.Client(t).Must("POST", Path("/login"), J{"type": "m.login.password", "identifier": J{"type": "m.id.user", "user": "alice"},
			"password": Password, "refresh_token": true}).JSON
		alice := s.Client(t)
		alice.UserID, alice.Token = in.Get("user_id").Str, in.Get("access_token").Str
		id := alice.Create(J{})
		since := alice.Sync(nil).Get("next_batch").Str
		path := Path("/rooms/%s/send/m.room.message/%s", id, "mine")
		first := alice.Must("PUT", path, J{"msgtype": "m.text", "body": "once"}).JSON.Get("event_id").Str

		alice.Token = s.Client(t).Must("POST", Path("/refresh"), J{"refresh_token": in.Get("refresh_token").Str}).JSON.Get("access_token").Str
		if again := alice.Must("PUT", path, J{"msgtype": "m.text", "body": "once"}).JSON.Get("event_id").Str; again != first {
			t.Errorf("the request made %s, and %s when it was repeated with another token", first, again)
		}
		r := alice.Must("GET", Path("/sync?")+url.Values{"since": {since}}.Encode(), nil).JSON
		events := Room(r, "join", id).Get("timeline.events").Array()
		if len(events) != 1 || events[0].Get("event_id").Str != first || events[0].Get("unsigned.transaction_id").Str != "mine" {
			t.Errorf("the timeline is %v", events)
		}
	})
}
