package scenario

import (
	"crypto/ed25519"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/tidwall/gjson"

	"github.com/myelin-im/myelin/internal/signing"
	"github.com/myelin-im/myelin/roomserver/pdu"
	"github.com/myelin-im/myelin/test/harness"
)

// A room's policy server signs what it recommends. What it refuses is not sent by local users, and what comes from other
// servers without its signature is kept from clients.
func TestPolicyServer(t *testing.T) {
	eachWorld(t, func(t *testing.T, w *world, alice *harness.Client) {
		public, private, err := ed25519.GenerateKey(nil)
		if err != nil {
			t.Fatal(err)
		}
		var mu sync.Mutex
		asked := 0
		w.peer.Handle(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/_matrix/policy/v1/sign" {
				_, _ = io.WriteString(rw, `{"pdus":{}}`)
				return
			}
			raw, err := io.ReadAll(r.Body)
			p, parseErr := pdu.Parse(w.v, raw)
			mu.Lock()
			asked++
			mu.Unlock()
			if err != nil || parseErr != nil || strings.Contains(gjson.GetBytes(raw, "content").Raw, "spam") {
				rw.WriteHeader(http.StatusBadRequest)
				_, _ = io.WriteString(rw, `{"errcode":"M_FORBIDDEN","error":"This is spam"}`)
				return
			}
			_ = json.NewEncoder(rw).Encode(harness.J{w.peer.Name: harness.J{"ed25519:policy_server": signing.Sign(p.SigningBytes(), private)}})
		}))
		alice.State(w.room, "m.room.policy", "", harness.J{"via": w.peer.Name, "public_keys": harness.J{"ed25519": signing.EncodeBase64(public)}})
		sent := alice.Text(w.room, "hello")
		got := w.peer.Do(w.server, "GET", fed("/v1/event/%s", sent), nil).JSON.Get("pdus.0")
		p, err := pdu.Parse(w.v, []byte(got.Raw))
		if err == nil {
			err = p.VerifySignature(w.peer.Name, "ed25519:policy_server", public)
		}
		if err != nil {
			t.Errorf("the event that was sent: %v", err)
		}
		alice.Refused(400, "M_FORBIDDEN", "PUT", harness.Path("/rooms/%s/send/m.room.message/%s", w.room, harness.Txn()), harness.J{"msgtype": "m.text", "body": "spam"})
		alice.Refused(400, "M_FORBIDDEN", "PUT", harness.Path("/rooms/%s/state/m.room.topic/", w.room), harness.J{"topic": "spam"})
		txn := harness.Txn()
		path := harness.Path("/rooms/%s/send/m.room.message/%s", w.room, txn)
		once := alice.Must("PUT", path, harness.J{"msgtype": "m.text", "body": "once"}).JSON.Get("event_id").Str
		if again := alice.Must("PUT", path, harness.J{"msgtype": "m.text", "body": "once"}).JSON.Get("event_id").Str; again != once {
			t.Errorf("a repeated request made the event %s beside %s", again, once)
		}

		// What the peer sends with the signature is not asked about; without, it is.
		mu.Lock()
		before := asked
		mu.Unlock()
		signed := w.build("m.room.message", nil, harness.J{"body": "spam that is signed"})
		if signed, err = signed.AddSignature(w.peer.Name, "ed25519:policy_server", signing.Sign(signed.SigningBytes(), private)); err != nil {
			t.Fatal(err)
		}
		w.add(signed)
		spam := w.build("m.room.message", nil, harness.J{"body": "spam"})
		ham := w.say("ham")
		w.send(signed, spam, ham)
		w.until(alice, ham)
		alice.Must("GET", harness.Path("/rooms/%s/event/%s", w.room, signed.ID), nil)
		alice.Refused(404, "M_NOT_FOUND", "GET", harness.Path("/rooms/%s/event/%s", w.room, spam.ID), nil)
		mu.Lock()
		if asked-before != 2 {
			t.Errorf("the policy server was asked %d times about three events, want 2", asked-before)
		}
		before = asked
		mu.Unlock()

		// It has no say in whether it stays.
		alice.State(w.room, "m.room.policy", "", harness.J{"note": "it refuses what is no spam"})
		alice.Text(w.room, "spam, says who?")
		mu.Lock()
		defer mu.Unlock()
		if asked != before {
			t.Error("the policy server was asked about its removal, or after it")
		}
	})
}
