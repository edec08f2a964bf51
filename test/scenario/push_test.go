package scenario

import (
	"testing"

	"github.com/tidwall/gjson"

	. "github.com/myelin-im/myelin/test/harness"
)

// A client may ask for a kind of push rule that only newer servers know.
func TestPushRulesOfUnknownKind(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice := s.Register(t, "alice")
		for _, path := range []string{"", "/enabled", "/actions"} {
			alice.Refused(404, "M_NOT_FOUND", "GET", Path("/pushrules/global/postcontent/.rule")+path, nil)
			alice.Refused(404, "M_NOT_FOUND", "GET", Path("/pushrules/global/override/.rule")+path, nil)
		}
		alice.Refused(400, "M_INVALID_PARAM", "PUT", Path("/pushrules/global/postcontent/rule"), J{"actions": []string{}})
	})
}

// Unread counts are of the messages since the last receipt, those of threads apart if the filter asks for it.
func TestUnreadCounts(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
		id := alice.Create(J{"preset": "public_chat"})
		bob.Join(id)
		bob.Sync(nil)
		root := alice.Text(id, "root")
		thread := func(body string) string {
			return alice.Event(id, "m.room.message", J{"msgtype": "m.text", "body": body, "m.relates_to": J{"rel_type": "m.thread", "event_id": root}})
		}
		thread("one")
		last := thread("two, @room")
		counts := func(threads bool) (out gjson.Result) {
			bob.SyncFrom("")
			return room(bob.Sync(Filter(J{"room": J{"timeline": J{"unread_thread_notifications": threads}}})), id)
		}
		if got := counts(false).Get("unread_notifications.notification_count").Int(); got != 3 {
			t.Errorf("%d unread messages, want 3", got)
		}
		part := counts(true)
		if part.Get("unread_notifications.notification_count").Int() != 1 || part.Get("unread_thread_notifications").Get(Key(root)+".notification_count").Int() != 2 {
			t.Errorf("unread: %s, %s", part.Get("unread_notifications"), part.Get("unread_thread_notifications"))
		}
		bob.Must("POST", Path("/rooms/%s/receipt/m.read/%s", id, last), J{"thread_id": root})
		if part = counts(true); part.Get("unread_thread_notifications").Get(Key(root)).Get("notification_count").Int() != 0 || part.Get("unread_notifications.notification_count").Int() != 1 {
			t.Errorf("after reading the thread: %s, %s", part.Get("unread_notifications"), part.Get("unread_thread_notifications"))
		}
		bob.Must("POST", Path("/rooms/%s/receipt/m.read/%s", id, last), J{})
		if got := counts(false).Get("unread_notifications.notification_count").Int(); got != 0 {
			t.Errorf("%d unread messages after reading all", got)
		}
		alice.Text(id, "new")
		bob.Text(id, "an answer") // reads what came before
		s.Restart()
		if got := counts(false).Get("unread_notifications.notification_count").Int(); got != 0 {
			t.Errorf("%d unread messages after sending one", got)
		}
	})
}
