package e2ee

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/tidwall/gjson"
)

// dehydrate lets a device put another one on the server.
func (d *device) dehydrate(id string) error {
	d.t.Helper()
	sleeping := stranger(d.t, d.api, d.by.UserID, id)
	_, err := d.api.putDehydrated(d.t.Context(), d.by, &dehydratedRequest{
		DeviceID: id, Data: json.RawMessage(`{"algorithm":"x","id":"` + id + `"}`), DeviceKeys: sleeping.identity(), OneTimeKeys: sleeping.keys("a"),
	})
	return err
}

// sleeps checks which device is dehydrated.
func (d *device) sleeps(what, id string) {
	d.t.Helper()
	out, err := d.api.getDehydrated(d.t.Context(), d.by, nil)
	if id == "" {
		if codeOf(err) != "M_NOT_FOUND" {
			d.t.Errorf("%s: %+v, %v, want none", what, out, err)
		}
		return
	}
	if err != nil || out.DeviceID != id || gjson.GetBytes(out.Data, "id").Str != id {
		d.t.Errorf("%s: %+v, %v, want %s", what, out, err, id)
	}
}

// send sends a message to a device.
func (d *device) send(txn, to, id, body string) {
	d.t.Helper()
	in := &toDeviceRequest{Type: "m.test", Txn: txn, Messages: messages{to: {id: json.RawMessage(fmt.Sprintf(`{"body":%q}`, body))}}}
	if _, err := d.api.sendToDevice(d.t.Context(), d.by, in); err != nil {
		d.t.Error(err)
	}
}

// There is one dehydrated device, which is like any other for whoever wants to reach it (MSC3814).
func TestDehydrated(t *testing.T) {
	eachAPI(t, func(t *testing.T, a *API) {
		const user = "@alice:hs"
		d, second := newDevice(t, a, user, "ONE"), newDevice(t, a, user, "TWO")
		bob := newDevice(t, a, "@bob:hs", "BOB")
		d.uploads(&uploadRequest{DeviceKeys: d.identity()})
		d.sleeps("before", "")
		for what, id := range map[string]string{"its own id": "ONE", "another device's id": "TWO", "no id": ""} {
			if err := d.dehydrate(id); codeOf(err) != "M_INVALID_PARAM" {
				t.Errorf("%s: %v", what, err)
			}
		}
		if err := d.dehydrate("SLEEPER"); err != nil {
			t.Fatal(err)
		}
		second.sleeps("for the other device", "SLEEPER")
		bob.sleeps("for others", "")
		published(t, a, user, 2)
		sleeper := stranger(t, a, user, "SLEEPER")
		if got := claims(t, a, signedCurve25519, sleeper); got[0] != "a" {
			t.Errorf("claimed %q of it", got)
		}

		// What it is sent is read in parts, by whoever wants to, as often as they want.
		const n = 2*MaxBatch + 7
		for i := range n {
			bob.send(fmt.Sprint(i), user, "SLEEPER", fmt.Sprint(i))
		}
		for range 2 {
			read, from := 0, ""
			for {
				out, err := a.dehydratedEvents(t.Context(), second.by, &dehydratedEventsRequest{DeviceID: "SLEEPER", From: from})
				if err != nil {
					t.Fatal(err)
				}
				for _, e := range out.Events {
					if got := gjson.GetBytes(e, "content.body").Str; got != fmt.Sprint(read) {
						t.Fatalf("message %d is %s", read, e)
					}
					read++
				}
				if out.Next == nil {
					break
				}
				from = *out.Next
			}
			if read != n {
				t.Errorf("%d messages, want %d", read, n)
			}
		}
		for what, c := range map[string]struct {
			by       *device
			id, from string
			code     string
		}{
			"another device":   {d, "TWO", "", "M_FORBIDDEN"},
			"somebody else":    {bob, "SLEEPER", "", "M_FORBIDDEN"},
			"a token of sync":  {d, "SLEEPER", "s1_2_3", "M_INVALID_PARAM"},
			"a negative token": {d, "SLEEPER", "d-1", "M_INVALID_PARAM"},
		} {
			if _, err := a.dehydratedEvents(t.Context(), c.by.by, &dehydratedEventsRequest{DeviceID: c.id, From: c.from}); codeOf(err) != c.code {
				t.Errorf("messages of %s: %v, want %s", what, err, c.code)
			}
		}

		// A refused one leaves the one before; another one takes its place, with all that was the first one's.
		if err := d.dehydrate("TWO"); codeOf(err) != "M_INVALID_PARAM" {
			t.Errorf("another device's id: %v", err)
		}
		d.sleeps("after a refusal", "SLEEPER")
		if err := second.dehydrate("NEXT"); err != nil {
			t.Fatal(err)
		}
		d.sleeps("after the second", "NEXT")
		published(t, a, user, 2)
		if got := claims(t, a, signedCurve25519, sleeper, stranger(t, a, user, "NEXT")); got[0] != "" || got[1] != "a" {
			t.Errorf("claimed %q of the first and the second", got)
		}
		if list, _, err := a.ToDevice(t.Context(), user, "SLEEPER", 0, a.db.Head(), MaxBatch); err != nil || len(list) != 0 {
			t.Errorf("%d messages for a device that is gone, %v", len(list), err)
		}
		if out, err := a.deleteDehydrated(t.Context(), d.by, nil); err != nil || out.DeviceID != "NEXT" {
			t.Errorf("deleted %+v, %v", out, err)
		}
		d.sleeps("after the end", "")
		published(t, a, user, 1)
		if _, err := a.deleteDehydrated(t.Context(), d.by, nil); codeOf(err) != "M_NOT_FOUND" {
			t.Errorf("deleted twice: %v", err)
		}
	})
}
