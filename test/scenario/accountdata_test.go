package scenario

import (
	"net/http"
	"testing"

	. "github.com/myelin-im/myelin/test/harness"
)

// What account data says of a device goes with the device (MSC3890).
func TestDeviceSettingsGoWithTheDevice(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice := s.Register(t, "alice")
		other := alice.Login()
		settings := func(c *Client) string {
			return Path("/user/%s/account_data/%s", alice.UserID, "org.matrix.msc3890.local_notification_settings."+c.DeviceID)
		}
		for _, c := range []*Client{alice, other} {
			c.Must("PUT", settings(c), J{"is_silenced": true})
		}
		alice.Sync(nil)
		other.Must("POST", Path("/logout"), J{})
		alice.Refused(http.StatusNotFound, "M_NOT_FOUND", "GET", settings(other), nil)
		alice.Must("GET", settings(alice), nil)
		// The other devices hear of it.
		for _, e := range alice.Sync(nil).Get("account_data.events").Array() {
			if e.Get("type").Str == "org.matrix.msc3890.local_notification_settings."+other.DeviceID && e.Get("content").Raw == "{}" {
				return
			}
		}
		t.Error("the sync does not tell that the settings are gone")
	})
}

// A room that the client does not know has its account data, though it be none.
func TestNewRoomsHaveAccountData(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice := s.Register(t, "alice")
		alice.Sync(nil)
		id := alice.Create(J{})
		if events := Room(alice.Sync(nil), "join", id).Get("account_data.events"); events.Raw != "[]" {
			t.Errorf("a new room: %s", events.Raw)
		}
		alice.Text(id, "more")
		if data := Room(alice.Sync(nil), "join", id).Get("account_data"); data.Exists() {
			t.Errorf("a known room without news of it: %s", data.Raw)
		}
		alice.Must("PUT", Path("/user/%s/rooms/%s/tags/m.favourite", alice.UserID, id), J{})
		if events := Room(alice.Sync(nil), "join", id).Get("account_data.events").Array(); len(events) != 1 || events[0].Get("type").Str != "m.tag" {
			t.Errorf("a tag: %v", events)
		}
	})
}
