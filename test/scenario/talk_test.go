// Package scenario tests whole conversations of clients with a server, on both databases: what the client-server
// specification promises to a client that sees nothing but HTTP.
package scenario

import (
	"fmt"
	"net/url"
	"slices"
	"testing"

	"github.com/tidwall/gjson"

	. "github.com/myelin-im/myelin/test/harness"
)

// room is the joined part of an answer of /sync.
func room(sync gjson.Result, id string) gjson.Result { return Room(sync, "join", id) }

func timeline(sync gjson.Result, id string) gjson.Result {
	return room(sync, id).Get("timeline.events")
}

// feed is a device that collects a room's timeline by syncing.
type feed struct {
	*Client
	ids []string
	all []gjson.Result
}

func (f *feed) sync(t *testing.T, id string) {
	t.Helper()
	r := room(f.Sync(url.Values{"filter": {`{"room":{"timeline":{"limit":100}}}`}}), id)
	if r.Get("timeline.limited").Bool() && f.ids != nil {
		t.Errorf("a gap in the timeline of %s", f.DeviceID)
	}
	f.ids = append(f.ids, IDs(r.Get("timeline.events"))...)
	f.all = append(f.all, r.Get("timeline.events").Array()...)
}

func TestTwoUsersWithTwoDevicesEach(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
		devices := []*feed{{Client: alice}, {Client: alice.Login()}, {Client: bob}, {Client: bob.Login()}}
		id := alice.Create(J{"preset": "private_chat", "name": "Talk", "invite": []string{bob.UserID}})
		for _, d := range devices[2:] {
			invite := Room(d.Sync(nil), "invite", id).Get("invite_state.events")
			if Find(invite, "m.room.name", "").Get("content.name").Str != "Talk" || Find(invite, "m.room.member", bob.UserID).Get("sender").Str != alice.UserID {
				t.Errorf("the invite shows %s", invite)
			}
			if create := Find(invite, "m.room.create", ""); create.Get("sender").Str != alice.UserID {
				t.Errorf("the invite has no create event: %s", invite)
			}
		}
		bob.Join(id)
		for _, d := range devices {
			d.sync(t, id)
		}
		var sent []string
		for i := range 40 {
			d := devices[i%4]
			sent = append(sent, d.Text(id, fmt.Sprint("message ", i)))
			if i%7 == 0 {
				devices[(i+1)%4].sync(t, id)
			}
		}
		target := sent[3]
		redaction := devices[3].Redact(id, target)
		for _, d := range devices {
			d.sync(t, id)
			if got := d.ids[len(d.ids)-41:]; !slices.Equal(got, append(slices.Clone(sent), redaction)) {
				t.Errorf("%s %s saw %v, sent were %v", d.UserID, d.DeviceID, got, sent)
			}
			if !slices.Equal(d.ids, devices[0].ids[len(devices[0].ids)-len(d.ids):]) {
				t.Errorf("the devices saw different timelines")
			}
		}
		last := devices[1].all[len(devices[1].all)-1]
		if last.Get("redacts").Str != target || last.Get("content.redacts").Str != target {
			t.Errorf("the redaction names its target as %s", last)
		}
		got := alice.Must("GET", Path("/rooms/%s/event/%s", id, target), nil).JSON
		if len(got.Get("content").Map()) != 0 || got.Get("unsigned.redacted_because.event_id").Str != redaction {
			t.Errorf("the redacted event is %s", got)
		}
		alice.Must("POST", Path("/logout"), J{})
		alice.Refused(401, "M_UNKNOWN_TOKEN", "GET", Path("/sync"), nil)
		devices[1].Text(id, "the other device stays")
	})
}

func TestTransactionIDs(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
		phone := alice.Login()
		id := alice.Create(J{"preset": "public_chat"})
		other := alice.Create(J{"preset": "public_chat"})
		bob.Join(id)
		for _, c := range []*Client{alice, phone, bob} {
			c.Sync(nil)
		}
		path := Path("/rooms/%s/send/%s/%s", id, "m.room.message", "once")
		body := J{"msgtype": "m.text", "body": "once"}
		first := alice.Must("PUT", path, body).JSON.Get("event_id").Str
		if again := alice.Must("PUT", path, J{"msgtype": "m.text", "body": "changed"}).JSON.Get("event_id").Str; again != first {
			t.Errorf("the same transaction made %s and %s", first, again)
		}
		if e := phone.Must("PUT", path, body).JSON.Get("event_id").Str; e == first {
			t.Error("two devices share a transaction")
		}
		if e := bob.Must("PUT", path, body).JSON.Get("event_id").Str; e == first {
			t.Error("two users share a transaction")
		}
		if e := alice.Must("PUT", Path("/rooms/%s/send/%s/%s", other, "m.room.message", "once"), body).JSON.Get("event_id").Str; e == first {
			t.Error("two rooms share a transaction")
		}
		redact := Path("/rooms/%s/redact/%s/%s", id, first, "r")
		if a, b := alice.Must("PUT", redact, J{}), alice.Must("PUT", redact, J{}); a.JSON.Get("event_id").Str != b.JSON.Get("event_id").Str {
			t.Errorf("a repeated redaction: %v, %v", a, b)
		}
		s.Restart()
		if again := alice.Must("PUT", path, body).JSON.Get("event_id").Str; again != first {
			t.Errorf("after a restart, the same transaction made %s and %s", first, again)
		}
		for _, c := range []*Client{alice, phone, bob} {
			events := timeline(c.Sync(nil), id).Array()
			if len(events) != 4 {
				t.Errorf("%s sees %d events instead of 4", c.DeviceID, len(events))
			}
			for i, e := range events {
				own := i == 0 && c == alice || i == 1 && c == phone || i == 2 && c == bob
				if i < 3 && (e.Get("unsigned.transaction_id").Str == "once") != own {
					t.Errorf("event %d for %s %s: %s", i, c.UserID, c.DeviceID, e)
				}
			}
		}
		for _, c := range []*Client{alice, phone} {
			e := c.Must("GET", Path("/rooms/%s/event/%s", id, first), nil).JSON
			if (e.Get("unsigned.transaction_id").Str == "once") != (c == alice) {
				t.Errorf("/event for %s: %s", c.DeviceID, e)
			}
		}
	})
}

func TestForeignTokens(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice := s.Register(t, "alice")
		id := alice.Create(J{})
		token := alice.Sync(nil).Get("next_batch").Str
		for _, bad := range []string{"x", "s1", "s1_0", "s99_1_2_3_4_5_6", token + "_1_", token + "_1_1.-", token + "_1_1_1", "-1", "t1", "s1_a_-1_0_0_0_0"} {
			alice.Refused(400, "M_INVALID_PARAM", "GET", Path("/sync?since=%s", bad), nil)
			alice.Refused(400, "M_INVALID_PARAM", "GET", Path("/rooms/%s/messages?dir=b&from=%s", id, bad), nil)
			alice.Refused(400, "M_INVALID_PARAM", "GET", Path("/rooms/%s/members?at=%s", id, bad), nil)
		}
		// A well-formed token of another log, or from a future that a restored backup does not know, starts anew.
		other := Start(t, 1).Register(t, "eve").Sync(nil).Get("next_batch").Str
		for _, stranger := range []string{other} {
			alice.SyncFrom(stranger)
			if events := room(alice.Sync(nil), id).Get("timeline.events").Array(); len(events) == 0 {
				t.Errorf("a token of another server leaves a gap")
			}
		}
	})
}
