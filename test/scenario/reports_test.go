package scenario

import (
	"fmt"
	"testing"

	. "github.com/myelin-im/myelin/test/harness"
)

// TestAdministratorsReadReports reports an event, a room and a user, and reads that page by page.
func TestAdministratorsReadReports(t *testing.T) {
	const list = "/_myelin/admin/v1/reports"
	Each(t, func(t *testing.T, s *Server) {
		admin, alice, bob := s.Admin(t, "root"), s.Register(t, "alice"), s.Register(t, "bob")
		if a := admin.Must("GET", list, nil); a.JSON.Get("reports").Raw != "[]" || a.JSON.Get("next_token").Exists() {
			t.Errorf("at first: %v", a)
		}
		alice.Refused(403, "M_FORBIDDEN", "GET", list, nil)

		room := alice.Create(J{"preset": "public_chat"})
		bob.Join(room)
		event := alice.Text(room, "spam")
		bob.Must("POST", Path("/rooms/%s/report/%s", room, event), J{"reason": "it is spam"})
		bob.Must("POST", Path("/rooms/%s/report", room), J{"reason": "full of spam"})
		bob.Must("POST", Path("/users/%s/report", alice.UserID), J{"reason": "spams"})

		var got []string
		page := list + "?limit=2"
		for range 2 {
			a := admin.Must("GET", page, nil)
			for _, r := range a.JSON.Get("reports").Array() {
				if r.Get("reporter").Str != bob.UserID || r.Get("received_ts").Int() == 0 {
					t.Errorf("a report: %s", r)
				}
				got = append(got, fmt.Sprint(r.Get("room_id").Str, r.Get("event_id").Str, r.Get("user_id").Str, r.Get("reason").Str))
			}
			page = fmt.Sprintf("%s?limit=2&from=%d", list, a.JSON.Get("next_token").Int())
		}
		wanted := []string{alice.UserID + "spams", room + "full of spam", room + event + alice.UserID + "it is spam"}
		if fmt.Sprint(got) != fmt.Sprint(wanted) {
			t.Errorf("reports %q, wanted %q", got, wanted)
		}
	})
}
