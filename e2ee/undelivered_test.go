package e2ee

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/myelin-im/myelin/storage"
)

// owe writes an EDU for a server.
func owe(t *testing.T, a *API, server, typ, content string) {
	t.Helper()
	err := a.db.Write(t.Context(), func(tx *storage.Tx) error {
		pos, err := tx.Position()
		if err == nil {
			_, err = tx.Exec(`INSERT INTO outgoing_edus (destination, pos, n, type, content) VALUES ($1, $2, 0, $3, $4)`, server, pos, typ, content)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// owed lists what a server is owed.
func owed(t *testing.T, a *API, server string) (list []string) {
	t.Helper()
	after, upTo := int64(0), a.db.Head()
	for after < upTo {
		edus, next, err := a.Pending(t.Context(), server, after, upTo, 100)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range edus {
			list = append(list, string(e.Content))
		}
		after = next
	}
	return list
}

// TestChangesCollapse: of many changes of devices that a server has not heard of, it needs only the last of each user.
func TestChangesCollapse(t *testing.T) {
	eachAPI(t, func(t *testing.T, a *API) {
		const list, signing = "m.device_list_update", "m.signing_key_update"
		change := func(user string, stream int) string {
			return fmt.Sprintf(`{"user_id":%q,"stream_id":%d,"prev_id":[%d]}`, user, stream, stream-1)
		}
		owe(t, a, "gone", messageEDU, `{"first":1}`)
		owe(t, a, "gone", signing, `{"user_id":"@ann:hs","old":1}`)
		for i := range maxUntold / 2 {
			owe(t, a, "gone", list, change("@ann:hs", i))
			owe(t, a, "gone", list, change("@ben:hs", i))
			owe(t, a, "slow", list, change("@ann:hs", i))
		}
		owe(t, a, "gone", signing, `{"user_id":"@ann:hs"}`)
		owe(t, a, "gone", messageEDU, `{"second":2}`)
		for _, server := range []string{"gone", "slow"} {
			if err := a.boundBacklog(t.Context(), server); err != nil {
				t.Fatal(err)
			}
		}
		last := maxUntold/2 - 1
		want := []string{`{"first":1}`, change("@ann:hs", last), change("@ben:hs", last), `{"user_id":"@ann:hs"}`, `{"second":2}`}
		if got := owed(t, a, "gone"); !slices.Equal(got, want) {
			t.Errorf("the server that is gone is owed %v, want %v", got, want)
		}
		if got := owed(t, a, "slow"); len(got) != maxUntold/2 {
			t.Errorf("the slow server is owed %d changes", len(got))
		}
	})
}

// TestUndeliveredMessagesAreBounded: a server that takes nothing loses the oldest messages.
func TestUndeliveredMessagesAreBounded(t *testing.T) {
	eachAPI(t, func(t *testing.T, a *API) {
		a.backlogs.limit = 80
		for i := range 81 {
			owe(t, a, "gone", messageEDU, fmt.Sprint(i))
			owe(t, a, "other", messageEDU, fmt.Sprint(i))
			if i == 40 {
				owe(t, a, "gone", "m.device_list_update", `{"user_id":"@ann:hs"}`)
			}
			if i == 79 {
				if err := a.boundBacklog(t.Context(), "gone"); err != nil {
					t.Fatal(err)
				}
				if n := len(owed(t, a, "gone")); n != 81 {
					t.Errorf("%d are owed, though there are not too many", n)
				}
			}
		}
		if err := a.boundBacklog(t.Context(), "gone"); err != nil {
			t.Fatal(err)
		}
		got := owed(t, a, "gone")
		if len(got) != 71 || got[0] != "11" || got[len(got)-1] != "80" || !strings.HasPrefix(got[30], "{") {
			t.Errorf("%d are owed: %v", len(got), got)
		}
		if n := len(owed(t, a, "other")); n != 81 {
			t.Errorf("another server is owed %d", n)
		}
	})
}

// TestBacklogsAreFound: a server is looked at after so many EDUs, those from before the start included.
func TestBacklogsAreFound(t *testing.T) {
	eachAPI(t, func(t *testing.T, a *API) {
		for range weighAfter {
			owe(t, a, "gone", messageEDU, `{}`)
		}
		owe(t, a, "here", messageEDU, `{}`)
		if _, err := a.Destinations(t.Context(), -1, a.db.Head()); err != nil {
			t.Fatal(err)
		}
		if n := len(a.backlogs.due); n != 1 {
			t.Fatalf("%d servers are to be looked at", n)
		}
		if server := <-a.backlogs.due; server != "gone" {
			t.Errorf("%s is to be looked at", server)
		}
	})
}

// TestUndeliveredMessagesExpire: nobody waits for ever for a message to a device. Changes of devices are owed until told.
func TestUndeliveredMessagesExpire(t *testing.T) {
	eachAPI(t, func(t *testing.T, a *API) {
		now := time.UnixMilli(1_700_000_000_000)
		a.now = func() time.Time { return now }
		a.undelivered = 30 * 24 * time.Hour
		pass := func(d time.Duration, want ...string) {
			t.Helper()
			now = now.Add(d)
			if err := a.expireUndelivered(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got := owed(t, a, "gone"); !slices.Equal(got, want) {
				t.Errorf("the server is owed %v, want %v", got, want)
			}
		}
		const day = 24 * time.Hour
		const change = `{"user_id":"@ann:hs"}`
		owe(t, a, "gone", messageEDU, "1")
		owe(t, a, "gone", "m.device_list_update", change)
		pass(0, "1", change)
		owe(t, a, "gone", messageEDU, "2")
		for range 29 {
			pass(day, "1", change, "2")
		}
		owe(t, a, "gone", messageEDU, "3")
		pass(day-time.Minute, "1", change, "2", "3")
		pass(time.Minute, change, "2", "3")
		pass(day, change, "3")
		a.undelivered = 0 // for ever
		pass(100*day, change, "3")
		a.undelivered = 30 * day
		pass(0, change)
		var days int64
		if _, err := a.db.Get(t.Context(), `SELECT count(*) FROM outgoing_days`, nil, &days); err != nil || days > 2 {
			t.Errorf("%d days are remembered (%v)", days, err)
		}
	})
}
