package scenario

import (
	"crypto/ed25519"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/tidwall/gjson"

	"github.com/myelin-im/myelin/internal/signing"
	"github.com/myelin-im/myelin/roomserver/pdu"
	"github.com/myelin-im/myelin/test/harness"
)

// An invite to an e-mail address becomes an invite to the user who owns it, on this server or on another, if the identity
// server that the room names has signed whose it is.
func TestThirdPartyInviteExchange(t *testing.T) {
	eachWorld(t, func(t *testing.T, w *world, alice *harness.Client) {
		public, private, err := ed25519.GenerateKey(nil)
		if err != nil {
			t.Fatal(err)
		}
		alice.State(w.room, "m.room.third_party_invite", "token1", harness.J{
			"display_name": "a friend", "key_validity_url": "https://id.example/valid", "public_key": signing.EncodeBase64(public),
			"public_keys": []harness.J{{"public_key": signing.EncodeBase64(public), "key_validity_url": "https://id.example/valid"}},
		})
		signed := func(user string) json.RawMessage {
			t.Helper()
			raw, err := signing.SignJSON(mustJSON(t, harness.J{"mxid": user, "token": "token1"}), "id.example", "ed25519:0", private)
			if err != nil {
				t.Fatal(err)
			}
			return raw
		}
		w.peer.Handle(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			if !strings.HasPrefix(r.URL.Path, "/_matrix/federation/v2/invite/") {
				_, _ = io.WriteString(rw, `{"pdus":{}}`)
				return
			}
			raw, err := io.ReadAll(r.Body)
			p, parseErr := pdu.Parse(w.v, []byte(gjson.GetBytes(raw, "event").Raw))
			if err != nil || parseErr != nil {
				rw.WriteHeader(http.StatusBadRequest)
				return
			}
			p, err = p.Sign(w.peer.Name, w.peer.KeyID, w.peer.Key)
			if err != nil {
				rw.WriteHeader(http.StatusBadRequest)
				return
			}
			_ = json.NewEncoder(rw).Encode(harness.J{"event": json.RawMessage(p.JSON())})
		}))
		friend := "@friend:" + w.peer.Name
		exchange := func(user string, proof json.RawMessage) *harness.Answer {
			return w.peer.Do(w.server, "PUT", fed("/v1/exchange_third_party_invite/%s", w.room), harness.J{
				"type": "m.room.member", "room_id": w.room, "sender": alice.UserID, "state_key": user,
				"content": harness.J{"membership": "invite", "third_party_invite": harness.J{"display_name": "a friend", "signed": proof}},
			})
		}
		if a := exchange("@thief:"+w.peer.Name, signed(friend)); a.Status != 400 {
			t.Errorf("with the proof of somebody else: %v", a)
		}
		var forged map[string]any
		if err := json.Unmarshal(signed(friend), &forged); err != nil {
			t.Fatal(err)
		}
		forged["mxid"] = "@thief:" + w.peer.Name
		if a := exchange("@thief:"+w.peer.Name, mustJSON(t, forged)); a.Status != 403 {
			t.Errorf("with a forged proof: %v", a)
		}
		if a := exchange(friend, signed(friend)); a.Status != 200 {
			t.Fatalf("exchange: %v", a)
		}
		e := alice.Must("GET", harness.Path("/rooms/%s/state/m.room.member/%s", w.room, friend), nil).JSON
		if e.Get("membership").Str != "invite" || e.Get("third_party_invite.signed.token").Str != "token1" {
			t.Errorf("the membership is %s", e.Raw)
		}

		// The identity server tells that the address belongs to a user of this server now.
		bob := w.server.Register(t, "bob")
		alice.State(w.room, "m.room.third_party_invite", "token1", harness.J{
			"display_name": "bob", "key_validity_url": "https://id.example/valid", "public_key": signing.EncodeBase64(public),
		})
		bound := w.peer.Do(w.server, "PUT", fed("/v1/3pid/onbind"), harness.J{
			"medium": "email", "address": "bob@example.org", "mxid": bob.UserID, "invites": []harness.J{{
				"medium": "email", "address": "bob@example.org", "mxid": bob.UserID, "room_id": w.room, "sender": alice.UserID, "signed": signed(bob.UserID),
			}},
		})
		if bound.Status != 200 {
			t.Fatalf("onbind: %v", bound)
		}
		invited(bob, w.room)
	})
}
