package e2ee

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"strings"
	"sync"
	"testing"

	"github.com/tidwall/gjson"

	"github.com/myelin-im/myelin/internal/httpapi"
)

// What one device sends to another arrives once and in its order, whoever else sends at the same time, and is gone when
// the receiver has acknowledged it.
func TestToDeviceOrder(t *testing.T) {
	eachAPI(t, func(t *testing.T, a *API) {
		const senders, each = 6, 40
		bob := newDevice(t, a, "@bob:hs", "BOB")
		newDevice(t, a, "@bob:hs", "TABLET")
		var group sync.WaitGroup
		for s := range senders {
			d := newDevice(t, a, fmt.Sprintf("@user%d:hs", s), "X")
			group.Go(func() {
				for i := range each {
					d.send(fmt.Sprint(i), "@bob:hs", allDevices, fmt.Sprint(i))
					d.send(fmt.Sprint(i), "@bob:hs", allDevices, "a repetition")
				}
			})
		}
		group.Wait()
		for _, id := range []string{"BOB", "TABLET"} {
			next, last, total := map[string]int{}, int64(0), 0
			for since := int64(0); ; {
				list, upTo, err := a.ToDevice(t.Context(), bob.by.UserID, id, since, a.db.Head(), MaxBatch)
				if err != nil {
					t.Fatal(err)
				}
				if len(list) == 0 {
					break
				}
				if len(list) > MaxBatch {
					t.Errorf("%d messages at once", len(list))
				}
				for _, m := range list {
					sender, body := gjson.GetBytes(m.Event, "sender").Str, gjson.GetBytes(m.Event, "content.body").Str
					if m.Pos <= last || body != fmt.Sprint(next[sender]) {
						t.Fatalf("%s at %d after %d: %s, want %d", id, m.Pos, last, m.Event, next[sender])
					}
					last = m.Pos
					next[sender]++
					total++
				}
				since = upTo
			}
			if total != senders*each {
				t.Errorf("%s has %d messages, want %d", id, total, senders*each)
			}
			if list, _, err := a.ToDevice(t.Context(), bob.by.UserID, id, 0, a.db.Head(), MaxBatch); err != nil || len(list) != 0 {
				t.Errorf("%s: %d messages are still there after they were acknowledged, %v", id, len(list), err)
			}
		}
	})
}

// A request that is refused delivers nothing.
func TestToDeviceRefused(t *testing.T) {
	eachAPI(t, func(t *testing.T, a *API) {
		newDevice(t, a, "@bob:hs", "BOB")
		alice := newDevice(t, a, "@alice:hs", "ALICE")
		good := map[string]json.RawMessage{"BOB": json.RawMessage(`{}`)}
		many := map[string]json.RawMessage{}
		for i := range maxRecipients + 1 {
			many[fmt.Sprint(i)] = json.RawMessage(`{}`)
		}
		for what, c := range map[string]struct {
			messages messages
			code     string
		}{
			"no object":        {messages{"@bob:hs": good, "@carol:hs": {"X": json.RawMessage(`[]`)}}, "M_BAD_JSON"},
			"a large message":  {messages{"@bob:hs": good, "@carol:hs": {"X": json.RawMessage(`{"x":"` + strings.Repeat("x", maxToDevice) + `"}`)}}, "M_TOO_LARGE"},
			"many devices":     {messages{"@bob:hs": good, "@carol:hs": many}, "M_TOO_LARGE"},
			"no devices":       {messages{}, ""},
			"nobody's devices": {messages{"@nobody:hs": good, "no user": good}, ""},
		} {
			in := &toDeviceRequest{Type: "m.test", Txn: what, Messages: c.messages}
			if _, err := a.sendToDevice(t.Context(), &httpapi.Caller{UserID: "@alice:hs", DeviceID: alice.by.DeviceID}, in); codeOf(err) != c.code {
				t.Errorf("%s: %v, want %q", what, err, c.code)
			}
		}
		if list, _, err := a.ToDevice(t.Context(), "@bob:hs", "BOB", 0, a.db.Head(), MaxBatch); err != nil || len(list) != 0 {
			t.Errorf("%d messages, %v", len(list), err)
		}
	})
}

// Messages for another server go into as many EDUs as they need, each in one of them.
func TestSplit(t *testing.T) {
	all := messages{}
	for u := range 5 {
		devices := map[string]json.RawMessage{}
		for d := range 40 {
			devices[fmt.Sprint("DEVICE", d)] = json.RawMessage(fmt.Sprintf(`{"of":"%d %d","x":%q}`, u, d, strings.Repeat("x", 100*d)))
		}
		all[fmt.Sprintf("@user%d:other", u)] = devices
	}
	all["@large:other"] = map[string]json.RawMessage{"LARGE": json.RawMessage(`{"x":"` + strings.Repeat("x", maxEDU+1) + `"}`)}
	parts := all.split()
	if !reflect.DeepEqual(parts, all.split()) {
		t.Error("it is not always the same")
	}
	together := messages{}
	for i, part := range parts {
		size, devices := 0, 0
		for user, list := range part {
			if together[user] == nil {
				together[user] = map[string]json.RawMessage{}
			}
			for id, content := range list {
				if _, twice := together[user][id]; twice {
					t.Errorf("%s of %s is in two parts", id, user)
				}
				size, devices = size+len(content), devices+1
			}
			maps.Copy(together[user], list)
		}
		if size > maxEDU && devices > 1 {
			t.Errorf("part %d has %d bytes for %d devices", i, size, devices)
		}
	}
	if !reflect.DeepEqual(together, all) {
		t.Error("the parts are not the whole")
	}
	if got := len(messages{}.split()); got != 0 {
		t.Errorf("nothing becomes %d parts", got)
	}
}
