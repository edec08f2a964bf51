package scenario

import (
	"net/url"
	"testing"

	"github.com/myelin-im/myelin/test/harness"
)

// TestNameOfStateAfter has clients ask for the state after the timeline by its name, and by the one of MSC4222, for which
// they look in the answer, too.
func TestNameOfStateAfter(t *testing.T) {
	harness.Each(t, func(t *testing.T, s *harness.Server) {
		alice := s.Register(t, "alice")
		room := alice.Create(harness.J{})
		names := []string{"state", "state_after", "org.matrix.msc4222.state_after"}
		for asked, want := range map[string]string{
			"": "state", "use_state_after": "state_after", "org.matrix.msc4222.use_state_after": "org.matrix.msc4222.state_after",
		} {
			query := url.Values{}
			if asked != "" {
				query.Set(asked, "true")
			}
			alice.SyncFrom("")
			joined := alice.Sync(query).Get("rooms.join").Get(harness.Key(room))
			for _, name := range names {
				if got := joined.Get(harness.Key(name)).Exists(); got != (name == want) {
					t.Errorf("asked for %q: %s is there: %t", asked, name, got)
				}
			}
		}
	})
}
