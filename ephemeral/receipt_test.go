package ephemeral

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/tidwall/gjson"

	"github.com/myelin-im/myelin/accounts"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/storage"
)

func receiptPath(room *roomserver.Room, kind, event string) string {
	return fmt.Sprintf("/rooms/%s/receipt/%s/%s", url.PathEscape(room.ID), kind, url.PathEscape(event))
}

func markersPath(room *roomserver.Room) string {
	return "/rooms/" + url.PathEscape(room.ID) + "/read_markers"
}

// receipts shows what a user is told of a room's receipts in (since, head], as "thread kind user event number".
func (s *server) receipts(room *roomserver.Room, user string, since int64, events []string) string {
	s.t.Helper()
	list, err := s.Receipts(s.t.Context(), room.NID, user, since, s.db.Head())
	if err != nil {
		s.t.Fatal(err)
	}
	var out []string
	for _, r := range list {
		thread, kind := r.Thread, map[Kind]string{Read: "read", Private: "private", FullyRead: "fully"}[r.Kind]
		if i := slices.Index(events, thread); i >= 0 {
			thread = fmt.Sprint("t", i)
		}
		name := strings.TrimSuffix(strings.TrimPrefix(r.User, "@"), ":hs")
		out = append(out, strings.TrimSpace(fmt.Sprintf("%s %s %s %d", thread, kind, name, slices.Index(events, r.EventID))))
	}
	return strings.Join(out, "; ")
}

func TestReceiptsMoveForward(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		room := s.room(alice, bob)
		var events []string
		for i := range 5 {
			root := ""
			if i == 3 {
				root = events[1]
			}
			events = append(events, s.send(room, alice, root))
		}
		start := s.db.Head()
		s.announced()
		steps := []struct {
			kind, thread string
			event        int
			notice       string
			bob, alice   string // what each is shown of all changes so far
		}{
			{"m.read", "", 1, "receipt @bob:hs", "read bob 1", "read bob 1"},
			{"m.read", "", 1, "", "read bob 1", "read bob 1"},
			{"m.read", "", 0, "", "read bob 1", "read bob 1"},
			{"m.read.private", "", 0, "private @bob:hs", "read bob 1; private bob 0", "read bob 1"},
			{"m.read", "main", 0, "receipt @bob:hs", "read bob 1; private bob 0; main read bob 0", "read bob 1; main read bob 0"},
			{"m.read", "", 4, "receipt @bob:hs", "private bob 0; main read bob 0; read bob 4", "main read bob 0; read bob 4"},
			{"m.read", "1", 3, "receipt @bob:hs", "private bob 0; main read bob 0; read bob 4; t1 read bob 3", "main read bob 0; read bob 4; t1 read bob 3"},
			{"m.read", "1", 1, "", "private bob 0; main read bob 0; read bob 4; t1 read bob 3", "main read bob 0; read bob 4; t1 read bob 3"},
			{"m.read.private", "", 2, "private @bob:hs", "main read bob 0; read bob 4; t1 read bob 3; private bob 2", "main read bob 0; read bob 4; t1 read bob 3"},
			{"m.fully_read", "", 2, "data @bob:hs", "main read bob 0; read bob 4; t1 read bob 3; private bob 2", "main read bob 0; read bob 4; t1 read bob 3"},
		}
		for i, step := range steps {
			body := "{}"
			switch step.thread {
			case "":
			case "main":
				body = `{"thread_id":"main"}`
			default:
				body = `{"thread_id":"` + events[1] + `"}`
			}
			s.ok(bob, "POST", receiptPath(room, step.kind, events[step.event]), body)
			if got := strings.Join(s.announced(), "; "); got != step.notice {
				t.Errorf("step %d announces %q, want %q", i, got, step.notice)
			}
			if got := s.receipts(room, bob, start, events); got != step.bob {
				t.Errorf("step %d: bob sees %q, want %q", i, got, step.bob)
			}
			if got := s.receipts(room, alice, start, events); got != step.alice {
				t.Errorf("step %d: alice sees %q, want %q", i, got, step.alice)
			}
			if got := s.receipts(room, alice, 0, events); got != step.alice {
				t.Errorf("step %d: alice sees %q from the beginning, want %q", i, got, step.alice)
			}
		}
		last := s.db.Head()
		if got := s.receipts(room, bob, last, events); got != "" {
			t.Errorf("nothing is new, but bob sees %q", got)
		}
		for thread, want := range map[string]string{Unthreaded: events[4], Main: events[0], events[1]: events[3], "$other": ""} {
			got, err := s.ReadUpTo(t.Context(), room.NID, bob, thread)
			if err != nil {
				t.Fatal(err)
			}
			if want != "" && got != s.pos(room, want) || want == "" && got != 0 {
				t.Errorf("bob has read thread %q up to %d, want %q", thread, got, want)
			}
		}
	})
}

func TestReadMarkers(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		room := s.room(alice)
		events := []string{s.send(room, alice, ""), s.send(room, alice, ""), s.send(room, alice, "")}
		marker := func() (event string) {
			t.Helper()
			err := s.db.Read(t.Context(), func(tx *storage.Tx) error {
				content, err := accounts.AccountDatum(tx, alice, room.ID, "m.fully_read")
				event = gjson.GetBytes(content, "event_id").Str
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			return event
		}
		s.announced()
		for i, step := range []struct {
			body, notices string
			marker        int
			receipts      string
		}{
			{`{}`, "", -1, ""},
			{`{"m.fully_read":"$1"}`, "data @alice:hs", 1, ""},
			{`{"m.fully_read":"$0"}`, "", 1, ""},
			{`{"m.fully_read":"$2","m.read":"$1","m.read.private":"$2"}`, "data @alice:hs; private @alice:hs; receipt @alice:hs", 2, "read alice 1; private alice 2"},
			{`{"m.fully_read":"$1","m.read":"$2","m.read.private":"$1"}`, "receipt @alice:hs", 2, "private alice 2; read alice 2"},
		} {
			body := step.body
			for j, e := range events {
				body = strings.ReplaceAll(body, fmt.Sprintf(`"$%d"`, j), `"`+e+`"`)
			}
			s.ok(alice, "POST", markersPath(room), body)
			if got := strings.Join(s.announced(), "; "); got != step.notices {
				t.Errorf("step %d announces %q, want %q", i, got, step.notices)
			}
			if got := slices.Index(events, marker()); got != step.marker {
				t.Errorf("step %d: marker at %d, want %d", i, got, step.marker)
			}
			if got := s.receipts(room, alice, 0, events); got != step.receipts {
				t.Errorf("step %d: %q, want %q", i, got, step.receipts)
			}
		}
	})
}

func TestBadReceipts(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		room, other := s.room(alice, bob), s.room(alice)
		root := s.send(room, alice, "")
		reply := s.send(room, alice, root)
		elsewhere := s.send(other, alice, "")
		read := receiptPath(room, "m.read", root)
		s.refused(403, "M_FORBIDDEN", carol, "POST", read, `{}`)
		s.refused(403, "M_FORBIDDEN", bob, "POST", receiptPath(other, "m.read", elsewhere), `{}`)
		s.refused(403, "M_FORBIDDEN", bob, "POST", "/rooms/!nowhere:hs/receipt/m.read/$x", `{}`)
		s.refused(403, "M_FORBIDDEN", carol, "POST", markersPath(room), `{"m.read":"`+root+`"}`)
		s.refused(404, "M_NOT_FOUND", bob, "POST", receiptPath(room, "m.read", "$unknown"), `{}`)
		s.refused(404, "M_NOT_FOUND", bob, "POST", receiptPath(room, "m.read", elsewhere), `{}`)
		s.refused(404, "M_NOT_FOUND", bob, "POST", markersPath(room), `{"m.fully_read":"`+elsewhere+`"}`)
		s.refused(404, "M_NOT_FOUND", bob, "POST", markersPath(room), `{"m.read":"`+root+`","m.fully_read":"junk"}`)
		s.refused(400, "M_INVALID_PARAM", bob, "POST", receiptPath(room, "m.seen", root), `{}`)
		s.refused(400, "M_INVALID_PARAM", bob, "POST", receiptPath(room, "m.read", "no-event"), `{}`)
		for _, thread := range []string{`""`, `5`, `null`, `[]`, `{}`, `"$unknown"`, `"` + reply + `"`, `"` + strings.Repeat("x", 300) + `"`} {
			s.refused(400, "M_INVALID_PARAM", bob, "POST", read, `{"thread_id":`+thread+`}`)
		}
		s.refused(400, "M_INVALID_PARAM", bob, "POST", receiptPath(room, "m.read", reply), `{"thread_id":"main"}`)
		s.refused(400, "M_INVALID_PARAM", bob, "POST", receiptPath(room, "m.fully_read", root), `{"thread_id":"main"}`)
		s.refused(400, "M_NOT_JSON", bob, "POST", read, `{`)
		s.refused(400, "M_BAD_JSON", bob, "POST", read, `[]`)
		s.refused(400, "M_BAD_JSON", bob, "POST", markersPath(room), `{"m.read":5}`)
		s.refused(401, "M_UNKNOWN_TOKEN", "nobody", "POST", read, `{}`)
		if got := s.receipts(room, bob, 0, nil); got != "" {
			t.Errorf("there are receipts: %q", got)
		}
		s.ok(bob, "POST", read, ``)
		s.ok(bob, "POST", read, `{"thread_id":"`+root+`"}`) // a root begins its thread
		s.ok(bob, "POST", receiptPath(room, "m.read", reply), `{"thread_id":"`+root+`","hidden":true}`)
	})
}

// TestInvisibleEvents marks events that were sent before the user joined.
func TestInvisibleEvents(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		room := s.room(alice)
		key := ""
		_, err := s.rooms.Send(t.Context(), room.ID, roomserver.Draft{Sender: alice, Type: "m.room.history_visibility", StateKey: &key,
			Content: []byte(`{"history_visibility":"joined"}`)})
		if err != nil {
			t.Fatal(err)
		}
		before := s.send(room, alice, "")
		s.member(room.ID, bob, roomserver.Join)
		s.refused(404, "M_NOT_FOUND", bob, "POST", receiptPath(room, "m.read", before), `{}`)
		s.ok(bob, "POST", receiptPath(room, "m.read", s.send(room, alice, "")), `{}`)
		s.member(room.ID, bob, roomserver.Leave)
		s.refused(403, "M_FORBIDDEN", bob, "POST", receiptPath(room, "m.read", before), `{}`)
	})
}

func TestReceiptEvents(t *testing.T) {
	for _, c := range []struct {
		name     string
		receipts []Receipt
		want     string
	}{
		{"none", nil, ``},
		{"one", []Receipt{{User: alice, Kind: Read, EventID: "$a", TS: 5}},
			`{"content":{"$a":{"m.read":{"@alice:hs":{"ts":5}}}},"type":"m.receipt"}`},
		{"everything", []Receipt{
			{User: bob, Kind: Private, EventID: "$a", TS: 1}, {User: bob, Kind: Read, Thread: "main", EventID: "$a", TS: 2},
			{User: bob, Kind: Read, EventID: "$a", TS: 3}, {User: alice, Kind: Read, EventID: "$a", TS: 4},
			{User: carol, Kind: Read, EventID: "$b", TS: 5}, {User: bob, Kind: Private, EventID: "$b", TS: 6},
			{User: bob, Kind: Read, Thread: "$t", EventID: "$a", TS: 7},
		}, `{"content":{"$a":{"m.read":{"@alice:hs":{"ts":4},"@bob:hs":{"ts":3}},"m.read.private":{"@bob:hs":{"ts":1}}},` +
			`"$b":{"m.read":{"@carol:hs":{"ts":5}},"m.read.private":{"@bob:hs":{"ts":6}}}},"type":"m.receipt"},` +
			`{"content":{"$a":{"m.read":{"@bob:hs":{"ts":7,"thread_id":"$t"}}}},"type":"m.receipt"},` +
			`{"content":{"$a":{"m.read":{"@bob:hs":{"ts":2,"thread_id":"main"}}}},"type":"m.receipt"}`},
	} {
		got := string(AppendReceiptEvents(nil, c.receipts))
		if got != c.want || got != "" && !gjson.Valid("["+got+"]") {
			t.Errorf("%s:\n got %s\nwant %s", c.name, got, c.want)
		}
	}
}

// TestManyReceipts compares what memory tells with what the database holds, for all places to begin at, when more
// receipts have moved than memory keeps, and after a restart.
func TestManyReceipts(t *testing.T) {
	eachDB(t, func(t *testing.T, db *storage.DB) {
		s := newServer(t, db)
		room := s.room(alice)
		events := []string{s.send(room, alice, ""), s.send(room, alice, "")}
		positions := []int64{0, db.Head()}
		put := func(user string, event int, kind Kind) {
			t.Helper()
			e, err := s.rooms.Event(t.Context(), room, events[event])
			if err != nil {
				t.Fatal(err)
			}
			r := Receipt{User: user, Kind: kind, EventID: e.ID, At: e.Token(), TS: 1}
			if err := db.Write(t.Context(), func(tx *storage.Tx) error { _, err := putReceipt(tx, room.NID, &r); return err }); err != nil {
				t.Fatal(err)
			}
			positions = append(positions, db.Head())
		}
		check := func(what string) {
			t.Helper()
			for i, since := range positions {
				if i%7 != 0 && i < len(positions)-20 {
					continue
				}
				want, err := s.API.receipts.old(t.Context(), room.NID, bob, since, db.Head())
				if err != nil {
					t.Fatal(err)
				}
				got, err := s.Receipts(t.Context(), room.NID, bob, since, db.Head())
				if err != nil {
					t.Fatal(err)
				}
				if !slices.Equal(got, want) {
					t.Fatalf("%s, since %d: %d receipts, want %d:\n%v\n%v", what, since, len(got), len(want), got, want)
				}
			}
		}
		put(bob, 0, Read)
		check("one")
		for i := range keepReceipts + 30 {
			put(fmt.Sprintf("@u%d:hs", i), 0, Read)
			if i%10 == 0 {
				put(fmt.Sprintf("@p%d:hs", i), 0, Private) // nobody's business
			}
			if i == 20 {
				check("some")
			}
		}
		check("many")
		for i := range 20 {
			put(fmt.Sprintf("@u%d:hs", 10*i), 1, Read)
			check("moved")
		}
		put(bob, 1, Private)
		check("private")
		s = newServer(t, db)
		if room, _ = s.rooms.Room(t.Context(), room.ID); room == nil {
			t.Fatal("the room is gone")
		}
		check("after a restart")
		put(bob, 1, Read)
		check("after a restart, moved")
	})
}
