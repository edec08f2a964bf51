package reports

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/tidwall/gjson"

	"github.com/myelin-im/myelin/accounts"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/roomserver/pdu"
	"github.com/myelin-im/myelin/roomserver/roomservertest"
	"github.com/myelin-im/myelin/storage"
	"github.com/myelin-im/myelin/storage/storagetest"
)

const alice, bob = "@alice:hs", "@bob:hs"

// world is the API behind a router that believes whoever says who they are.
type world struct {
	t     *testing.T
	db    *storage.DB
	rooms *roomserver.Server
	web   *httptest.Server
}

func each(t *testing.T, fn func(w *world)) {
	storagetest.Each(t, []storage.Schema{roomserver.Schema, accounts.Schema, Schema}, func(t *testing.T, db *storage.DB) {
		rooms := roomservertest.New(t, db)
		w := &world{t, db, rooms, httptest.NewServer(roomservertest.Router(t, New(db, rooms, roomservertest.Log()).Endpoints()))}
		t.Cleanup(w.web.Close)
		fn(w)
	})
}

// post makes a request and returns the status and the errcode.
func (w *world) post(who, path, body string) (int, string) {
	w.t.Helper()
	r, err := http.NewRequest(http.MethodPost, w.web.URL+"/_matrix/client/v3/"+path, strings.NewReader(body))
	if err != nil {
		w.t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+who)
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		w.t.Fatal(err)
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return res.StatusCode, gjson.GetBytes(raw, "errcode").Str
}

// stored are the reports without their times, as text.
func (w *world) stored() (list []string) {
	w.t.Helper()
	err := w.db.Read(context.Background(), func(tx *storage.Tx) error {
		list = nil
		rows := tx.Query(`SELECT reporter, kind, room_id, event_id, user_id, reason FROM reports ORDER BY id`)
		for rows.Next() {
			var reporter, reason string
			var kind int64
			var room, event, user *string
			rows.Scan(&reporter, &kind, &room, &event, &user, &reason)
			row := reporter + " " + string(rune('0'+kind))
			for _, s := range []*string{room, event, user} {
				if s != nil {
					row += " " + *s
				} else {
					row += " -"
				}
			}
			list = append(list, row+" "+reason)
		}
		return rows.Close()
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return list
}

// room makes a room of alice's whose history only members see from when they join, and sends a message.
func (w *world) room() (id, message string) {
	w.t.Helper()
	ctx := context.Background()
	v, _ := pdu.Lookup(pdu.DefaultVersion)
	id, err := w.rooms.CreateRoom(ctx, roomserver.NewRoom{Creator: alice, Version: v, Preset: roomserver.PublicChat, InitialState: []roomserver.StateDraft{
		{Type: "m.room.history_visibility", Content: []byte(`{"history_visibility":"joined"}`)},
	}})
	if err != nil {
		w.t.Fatal(err)
	}
	message, err = w.rooms.Send(ctx, id, roomserver.Draft{Sender: alice, Type: "m.room.message", Content: []byte(`{"body":"x"}`)})
	if err != nil {
		w.t.Fatal(err)
	}
	return id, message
}

func TestReports(t *testing.T) {
	each(t, func(w *world) {
		room, message := w.room()
		if _, err := w.rooms.SetMembership(context.Background(), roomserver.MembershipChange{RoomID: room, Sender: bob, Target: bob, Membership: roomserver.Join}); err != nil {
			w.t.Fatal(err)
		}
		seen, err := w.rooms.Send(context.Background(), room, roomserver.Draft{Sender: alice, Type: "m.room.message", Content: []byte(`{"body":"y"}`)})
		if err != nil {
			w.t.Fatal(err)
		}
		err = w.db.Write(context.Background(), func(tx *storage.Tx) error {
			_, err := tx.Exec(`INSERT INTO accounts (user_id, kind, admin, locked, suspended, erased, created_ts) VALUES ($1, 0, $2, $2, $2, $2, 0)`, alice, false)
			return err
		})
		if err != nil {
			w.t.Fatal(err)
		}
		path := func(parts ...string) string {
			for i := range parts {
				parts[i] = url.PathEscape(parts[i])
			}
			return strings.Join(parts, "/")
		}
		long := `{"reason":"` + strings.Repeat("x", maxReason+1) + `"}`
		for _, c := range []struct {
			who, path, body string
			status          int
			code            string
		}{
			{bob, path("rooms", room, "report", seen), `{"reason":"rude","score":-100}`, 200, ""},
			{bob, path("rooms", room, "report", seen), `{}`, 200, ""},
			{bob, path("rooms", room, "report", message), `{}`, 404, "M_NOT_FOUND"}, // before bob came
			{bob, path("rooms", room, "report", "$none"), `{}`, 404, "M_NOT_FOUND"},
			{"@carol:hs", path("rooms", room, "report", seen), `{}`, 404, "M_NOT_FOUND"},
			{bob, path("rooms", "!none:hs", "report", seen), `{}`, 404, "M_NOT_FOUND"},
			{bob, path("rooms", room, "report", seen), long, 400, "M_INVALID_PARAM"},
			{bob, path("rooms", room, "report", seen), `{"reason":5}`, 400, "M_BAD_JSON"},
			{"@carol:hs", path("rooms", room, "report"), `{"reason":"spam"}`, 200, ""},
			{"@carol:hs", path("rooms", room, "report"), `{}`, 400, "M_MISSING_PARAM"},
			{"@carol:hs", path("rooms", "!none:hs", "report"), `{"reason":""}`, 404, "M_NOT_FOUND"},
			{"@carol:hs", path("users", alice, "report"), `{"reason":""}`, 200, ""},
			{"@carol:hs", path("users", "@x:elsewhere", "report"), `{"reason":"far"}`, 200, ""},
			{"@carol:hs", path("users", "@none:hs", "report"), `{"reason":""}`, 404, "M_NOT_FOUND"},
			{"@carol:hs", path("users", alice, "report"), `{}`, 400, "M_MISSING_PARAM"},
		} {
			if status, code := w.post(c.who, c.path, c.body); status != c.status || code != c.code {
				w.t.Errorf("%s %.80s: %d %s, want %d %s", c.path, c.body, status, code, c.status, c.code)
			}
		}
		want := []string{
			bob + " 1 " + room + " " + seen + " " + alice + " rude",
			bob + " 1 " + room + " " + seen + " " + alice + " ",
			"@carol:hs 2 " + room + " - - spam",
			"@carol:hs 3 - - " + alice + " ",
			"@carol:hs 3 - - @x:elsewhere far",
		}
		if got := w.stored(); !slices.Equal(got, want) {
			w.t.Errorf("stored %q, want %q", got, want)
		}
	})
}

func TestReportsAreBounded(t *testing.T) {
	each(t, func(w *world) {
		a := New(w.db, w.rooms, roomservertest.Log())
		for range maxReports {
			if err := a.store(context.Background(), report{reporter: bob, kind: userReport, userID: alice}); err != nil {
				w.t.Fatal(err)
			}
		}
		path := "users/" + url.PathEscape("@x:elsewhere") + "/report"
		if status, code := w.post(bob, path, `{"reason":""}`); status != 429 || code != "M_LIMIT_EXCEEDED" {
			w.t.Errorf("one more: %d %s", status, code)
		}
		if status, _ := w.post(alice, path, `{"reason":""}`); status != 200 {
			w.t.Errorf("someone else: %d", status)
		}
	})
}
