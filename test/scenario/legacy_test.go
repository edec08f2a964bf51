package scenario

import (
	"net/url"
	"testing"

	"github.com/tidwall/gjson"

	. "github.com/myelin-im/myelin/test/harness"
)

// TestBeforeSync follows rooms with the endpoints that /sync replaced.
func TestBeforeSync(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
		room := alice.Create(J{"preset": "public_chat", "visibility": "public", "topic": "old times"})
		bob.Join(room)
		first := bob.Text(room, "first")
		left := bob.Create(J{"preset": "public_chat"})
		alice.Join(left)
		alice.Leave(left)
		invited := bob.Create(J{"invite": []string{alice.UserID}})
		alice.Must("PUT", Path("/user/%s/account_data/m.test", alice.UserID), J{"a": 1})

		a := alice.Must("GET", Path("/initialSync?limit=3"), nil).JSON
		rooms := map[string]gjson.Result{}
		for _, r := range a.Get("rooms").Array() {
			rooms[r.Get("room_id").Str] = r
		}
		r := rooms[room]
		chunk := r.Get("messages.chunk").Array()
		if len(rooms) != 2 || r.Get("membership").Str != "join" || r.Get("visibility").Str != "public" || len(chunk) != 3 {
			t.Fatalf("initialSync: %s", a.Raw)
		}
		if last := chunk[2]; last.Get("event_id").Str != first || last.Get("room_id").Str != room {
			t.Errorf("last message: %s", last.Raw)
		}
		if topic := Find(r.Get("state"), "m.room.topic", ""); topic.Get("content.topic").Str != "old times" || Find(r.Get("state"), "m.room.member", bob.UserID).Raw == "" {
			t.Errorf("state: %s", r.Get("state").Raw)
		}
		if page := alice.Messages(room, r.Get("messages.start").Str, "b", 5, nil); len(page.Events) == 0 {
			t.Error("nothing before the start of the messages")
		}
		if i := rooms[invited]; i.Get("membership").Str != "invite" || i.Get("invite.sender").Str != bob.UserID || i.Get("invite.room_id").Str != invited {
			t.Errorf("invite: %s", i.Raw)
		}
		if !a.Get("presence").IsArray() || a.Get("account_data.#").Int() == 0 {
			t.Errorf("presence and account data: %s", a.Raw)
		}
		archived := alice.Must("GET", Path("/initialSync?archived=true"), nil).JSON
		if found := archived.Get(`rooms.#(room_id=="` + left + `").membership`).Str; found != "leave" {
			t.Errorf("a room that was left: %q", found)
		}

		// The stream goes on from there.
		from := a.Get("end").Str
		events := func(c *Client, query url.Values) gjson.Result {
			t.Helper()
			return c.Must("GET", Path("/events?")+query.Encode(), nil).JSON
		}
		none := events(alice, url.Values{"from": {from}, "timeout": {"0"}})
		for _, e := range none.Get("chunk").Array() {
			if e.Get("event_id").Exists() {
				t.Errorf("an event out of nothing: %s", e.Raw)
			}
		}
		done := make(chan gjson.Result)
		go func() { done <- events(alice, url.Values{"from": {none.Get("end").Str}, "timeout": {"20000"}}) }()
		second := bob.Text(room, "second")
		// Something of presence may come first.
		got := <-done
		for range 20 {
			if hasEvent(got, second, room) {
				break
			}
			got = events(alice, url.Values{"from": {got.Get("end").Str}, "timeout": {"5000"}})
		}
		if !hasEvent(got, second, room) {
			t.Errorf("the stream: %s", got.Raw)
		}
		alice.Refused(400, "M_INVALID_PARAM", "GET", Path("/events?from=nonsense"), nil)

		if e := alice.Must("GET", Path("/events/%s", second), nil).JSON; e.Get("event_id").Str != second || e.Get("room_id").Str != room {
			t.Errorf("one event: %s", e.Raw)
		}
		carol := s.Register(t, "carol")
		secret := bob.Text(invited, "not for carol")
		carol.Refused(404, "M_NOT_FOUND", "GET", Path("/events/%s", secret), nil)
		carol.Refused(404, "M_NOT_FOUND", "GET", Path("/events/%s", "$nothing"), nil)
	})
}

// TestRoomInitialSync looks into one room with all that belongs to it, as a member and as somebody who was one.
func TestRoomInitialSync(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
		room := alice.Create(J{"preset": "public_chat", "visibility": "public"})
		other := alice.Create(J{"preset": "private_chat"})
		bob.Join(room)
		read := alice.Text(room, "read this")
		bob.Must("POST", Path("/rooms/%s/receipt/m.read/%s", room, read), J{})
		bob.Must("PUT", Path("/presence/%s/status", bob.UserID), J{"presence": "online", "status_msg": "here"})
		tags := J{"tags": J{"work": J{"order": 0.5}}}
		alice.Must("PUT", Path("/user/%s/rooms/%s/account_data/m.tag", alice.UserID, room), tags)
		alice.Must("PUT", Path("/user/%s/rooms/%s/account_data/org.example", alice.UserID, other), J{"a": 1})
		look := func(c *Client, id string) gjson.Result {
			t.Helper()
			return c.Must("GET", Path("/rooms/%s/initialSync", id), nil).JSON
		}
		a := look(alice, room)
		if a.Get("room_id").Str != room || a.Get("membership").Str != "join" || a.Get("visibility").Str != "public" {
			t.Errorf("the room: %s", a.Raw)
		}
		if data := a.Get("account_data"); data.Get("#").Int() != 1 || data.Get("0.type").Str != "m.tag" || data.Get("0.content.tags.work.order").Num != 0.5 {
			t.Errorf("account data: %s", data.Raw)
		}
		hasReceipt := func(receipts gjson.Result) bool {
			for _, e := range receipts.Array() {
				for id, by := range e.Get("content").Map() {
					if _, has := by.Get(`m\.read`).Map()[bob.UserID]; has && id == read && e.Get("type").Str == "m.receipt" && e.Get("room_id").Str == room {
						return true
					}
				}
			}
			return false
		}
		if !hasReceipt(a.Get("receipts")) {
			t.Errorf("receipts: %s", a.Get("receipts").Raw)
		}
		if p := a.Get(`presence.#(sender=="` + bob.UserID + `")`); p.Get("type").Str != "m.presence" || p.Get("content.status_msg").Str != "here" {
			t.Errorf("presence: %s", a.Get("presence").Raw)
		}
		if b := look(bob, room); b.Get("account_data").Raw != "[]" {
			t.Errorf("the data of somebody else: %s", b.Get("account_data").Raw)
		}
		if all := alice.Must("GET", Path("/initialSync"), nil).JSON; !hasReceipt(all.Get("receipts")) {
			t.Errorf("receipts of all rooms: %s", all.Get("receipts").Raw)
		}
		if v := look(alice, other).Get("visibility").Str; v != "private" {
			t.Errorf("a room that is not in the directory is %q", v)
		}
		// Who has left sees neither who is there nor what they read.
		alice.Leave(room)
		if a = look(alice, room); a.Get("membership").Str != "leave" || a.Get("receipts").Raw != "[]" || a.Get("presence").Raw != "[]" || a.Get("account_data.#").Int() != 1 {
			t.Errorf("after leaving: %s", a.Raw)
		}
	})
}

func hasEvent(answer gjson.Result, id, room string) bool {
	for _, e := range answer.Get("chunk").Array() {
		if e.Get("event_id").Str == id && e.Get("room_id").Str == room {
			return true
		}
	}
	return false
}

// TestPeeking lets a guest look into a room that everyone may read.
func TestPeeking(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, guest := s.Register(t, "alice"), s.Guest(t)
		room := alice.Create(J{"preset": "public_chat", "initial_state": []J{{"type": "m.room.history_visibility", "content": J{"history_visibility": "world_readable"}}}})
		closed := alice.Create(J{"preset": "public_chat"})
		peek := func(query url.Values) gjson.Result {
			t.Helper()
			return guest.Must("GET", Path("/events?")+query.Encode(), nil).JSON
		}
		start := peek(url.Values{"room_id": {room}, "timeout": {"0"}})
		if start.Get("chunk").Raw != "[]" {
			t.Errorf("without a token, it begins now: %s", start.Raw)
		}
		done := make(chan gjson.Result)
		go func() {
			done <- peek(url.Values{"room_id": {room}, "from": {start.Get("end").Str}, "timeout": {"20000"}})
		}()
		id := alice.Text(room, "seen by all")
		alice.Text(closed, "seen by members")
		got := <-done
		if chunk := got.Get("chunk").Array(); len(chunk) != 1 || !hasEvent(got, id, room) {
			t.Errorf("the stream of the room: %s", got.Raw)
		}
		if again := peek(url.Values{"room_id": {room}, "from": {got.Get("end").Str}, "timeout": {"0"}}); again.Get("chunk").Raw != "[]" {
			t.Errorf("it was told twice: %s", again.Raw)
		}
		guest.Refused(403, "M_FORBIDDEN", "GET", Path("/events?room_id=%s", closed), nil)
		guest.Refused(403, "M_GUEST_ACCESS_FORBIDDEN", "GET", Path("/events"), nil)
	})
}
