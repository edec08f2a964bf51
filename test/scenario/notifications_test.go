package scenario

import (
	"fmt"
	"net/url"
	"testing"

	"github.com/tidwall/gjson"

	. "github.com/myelin-im/myelin/test/harness"
)

func TestNotifications(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
		notifications := func(query url.Values) gjson.Result {
			t.Helper()
			return alice.Must("GET", Path("/notifications?")+query.Encode(), nil).JSON
		}
		ids := func(answer gjson.Result) (list []string) {
			for _, n := range answer.Get("notifications").Array() {
				list = append(list, n.Get("event.event_id").Str)
			}
			return list
		}
		if a := notifications(nil); a.Get("notifications").Raw != "[]" {
			t.Errorf("notifications of somebody new: %s", a.Raw)
		}
		var rooms []string
		for range 3 {
			room := bob.Create(J{"preset": "public_chat"})
			bob.Text(room, "before alice")
			alice.Join(room)
			rooms = append(rooms, room)
		}
		var sent []string // newest first
		for i := range 30 {
			content := J{"msgtype": "m.text", "body": fmt.Sprint("message ", i)}
			if i == 7 || i == 21 {
				content["m.mentions"] = J{"user_ids": []string{alice.UserID}}
			}
			alice.Text(rooms[i%3], "my own")
			id := bob.Event(rooms[i%3], "m.room.message", content)
			sent = append([]string{id}, sent...)
		}
		alice.Must("POST", Path("/rooms/%s/receipt/m.read/%s", rooms[0], sent[5]), J{}) // message 24, in the first room

		var got []string
		var all []gjson.Result
		query, pages := url.Values{"limit": {"7"}}, 0
		for {
			a := notifications(query)
			got = append(got, ids(a)...)
			all = append(all, a.Get("notifications").Array()...)
			if len(ids(a)) > 7 {
				t.Fatalf("a page has %d", len(ids(a)))
			}
			if pages++; a.Get("next_token").Str == "" || pages > 20 {
				break
			}
			query.Set("from", a.Get("next_token").Str)
		}
		if fmt.Sprint(got) != fmt.Sprint(sent) {
			t.Fatalf("page by page:\n%v, want\n%v", got, sent)
		}
		for i, n := range all {
			number := 29 - i
			read := number%3 == 0 && number <= 24
			if n.Get("room_id").Str != rooms[number%3] || n.Get("read").Bool() != read || !n.Get("read").Exists() || n.Get("ts").Int() == 0 ||
				n.Get("actions.0").Str != "notify" || n.Get("event.room_id").Exists() || n.Get("event.sender").Str != bob.UserID {
				t.Errorf("message %d: %s", number, n.Raw)
			}
		}
		if got, want := ids(notifications(url.Values{"only": {"highlight"}})), []string{sent[8], sent[22]}; fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("highlights: %v, want %v", got, want)
		}
		private := bob.Create(J{"invite": []string{alice.UserID}})
		if a := notifications(nil); a.Get("notifications.0.room_id").Str != private || a.Get("notifications.0.event.type").Str != "m.room.member" {
			t.Errorf("an invite: %s", a.Get("notifications.0").Raw)
		}
		for _, bad := range []string{"x", "n", "n-1", "nx"} {
			alice.Refused(400, "M_INVALID_PARAM", "GET", Path("/notifications?from=")+bad, nil)
		}
	})
}
