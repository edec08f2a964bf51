package e2ee

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/tidwall/gjson"

	"github.com/myelin-im/myelin/accounts"
	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/storage"
	"github.com/myelin-im/myelin/storage/storagetest"
)

// TestOverfullInbox floods a device that never looks. What others sent it stays, and the latest of the flood.
func TestOverfullInbox(t *testing.T) {
	storagetest.Each(t, []storage.Schema{roomserver.Schema, accounts.Schema, Schema}, func(t *testing.T, db *storage.DB) {
		a := newAPI(t, db)
		const device = "DEVICE"
		err := db.Write(t.Context(), func(tx *storage.Tx) error {
			_, err := a.accounts.AddDevice(tx, "@bob:hs", device, nil)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan struct{})
		a.overfull.limit = 160 * (messageCost + 1000)
		go func() { a.Run(ctx); close(ended) }()
		n := 0
		send := func(sender, body string) {
			t.Helper()
			n++
			// Who sends it is not what the content says.
			content := json.RawMessage(fmt.Sprintf(`{"body":"%s","pad":"%s","x":{"a":1,"sender":"@friend:hs","type":"y"}}`, body, strings.Repeat("x", 900)))
			to := messages{"@bob:hs": {device: content}}
			if strings.HasSuffix(sender, ":hs") {
				in := &toDeviceRequest{Type: "m.test", Txn: fmt.Sprint(n), Messages: to}
				if _, err := a.sendToDevice(t.Context(), &httpapi.Caller{UserID: sender, DeviceID: "X"}, in); err != nil {
					t.Fatal(err)
				}
				return
			}
			edu, err := json.Marshal(directToDevice{sender, "m.test", fmt.Sprint(n), to})
			if err != nil {
				t.Fatal(err)
			}
			if err := a.ReceiveToDevice(t.Context(), "other", edu); err != nil {
				t.Fatal(err)
			}
		}
		for i := range 20 {
			send("@friend:hs", fmt.Sprint("friend ", i))
		}
		const flood = 400
		for i := range flood {
			send(fmt.Sprintf("@user%d:other", i), fmt.Sprint("flood ", i)) // as many users as it likes
		}
		stop()
		<-ended
		if err := a.boundInbox(t.Context(), inboxKey{"@bob:hs", device}); err != nil {
			t.Fatal(err)
		}
		var friends, floods []string
		for since, more := int64(0), true; more; {
			list, next, err := a.ToDevice(t.Context(), "@bob:hs", device, since, db.Head(), MaxBatch)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range list {
				body := gjson.GetBytes(m.Event, "content.body").Str
				if strings.HasPrefix(body, "friend") {
					friends = append(friends, body)
				} else {
					floods = append(floods, body)
				}
			}
			since, more = next, len(list) > 0
		}
		if len(friends) != 20 || friends[0] != "friend 0" || friends[19] != "friend 19" {
			t.Errorf("of the friend's messages there are %v", friends)
		}
		if len(floods) < 100 || len(floods) > 140 || floods[len(floods)-1] != fmt.Sprint("flood ", flood-1) || floods[0] != fmt.Sprint("flood ", flood-len(floods)) {
			t.Errorf("of the flood there are %d messages: %v", len(floods), floods)
		}
	})
}

// TestInboxIsMeasured checks when an inbox is due: after a sixteenth of the limit, and then after as much as could fill it.
func TestInboxIsMeasured(t *testing.T) {
	storagetest.Each(t, []storage.Schema{roomserver.Schema, accounts.Schema, Schema}, func(t *testing.T, db *storage.DB) {
		a := newAPI(t, db)
		key := inboxKey{"@bob:hs", "DEVICE"}
		a.overfull.limit = 160 * (messageCost + 1000)
		due := func(want int) {
			t.Helper()
			n := 0
			for len(a.overfull.due) == 0 {
				a.overfull.grew(key, 1000)
				n++
			}
			if n != want {
				t.Errorf("measured after %d messages, want %d", n, want)
			}
			if err := a.boundInbox(t.Context(), <-a.overfull.due); err != nil {
				t.Fatal(err)
			}
		}
		due(11)
		due(161) // it was found empty
	})
}

func TestFairShare(t *testing.T) {
	for _, c := range []struct {
		of         map[string]int64
		size, want int64
	}{
		{map[string]int64{"a": 100}, 60, 60},
		{map[string]int64{"a": 100, "b": 100}, 60, 30},
		{map[string]int64{"a": 10, "b": 100}, 60, 50},
		{map[string]int64{"a": 10, "b": 20, "c": 90, "d": 90}, 130, 50},
		{map[string]int64{"a": 0, "b": 7}, 6, 6},
	} {
		if got := fairShare(c.of, c.size); got != c.want {
			t.Errorf("%v in %d: each has %d, want %d", c.of, c.size, got, c.want)
		}
	}
}
