package scenario

import (
	"crypto/ed25519"
	"net/http"
	"testing"
	"time"

	"github.com/myelin-im/myelin/federation/client"
	"github.com/myelin-im/myelin/internal/signing"
	"github.com/myelin-im/myelin/storage"
	"github.com/myelin-im/myelin/test/harness"
)

// spec: server-server-api v1.19 "Retrieving server keys"
func TestKeysArePublishedAndPassedOn(t *testing.T) {
	harness.EachFederation(t, 2, func(t *testing.T, servers []*harness.Server) {
		first, second := servers[0], servers[1]
		peer := harness.NewPeer(t, nil)
		own := peer.Do(first, "GET", "/_matrix/key/v2/server", nil)
		if own.Status != 200 || own.JSON.Get("server_name").Str != first.Name {
			t.Fatalf("own keys: %v", own)
		}
		if until := own.JSON.Get("valid_until_ts").Int(); until < time.Now().Add(time.Hour).UnixMilli() {
			t.Errorf("the keys expire at %d", until)
		}
		if !own.JSON.Get("old_verify_keys").IsObject() {
			t.Errorf("no old keys: %v", own)
		}
		for id, k := range own.JSON.Get("verify_keys").Map() {
			key, err := signing.DecodeBase64(k.Get("key").Str)
			if err != nil {
				t.Fatal(err)
			}
			if err := signing.VerifyJSON(own.Body, first.Name, id, ed25519.PublicKey(key)); err != nil {
				t.Errorf("own signature: %v", err)
			}
			if same := peer.Do(first, "GET", client.Path("/_matrix/key/v2/server/%s", id), nil); same.JSON.Get("server_name").Str != first.Name {
				t.Errorf("with a key id: %v", same)
			}
		}

		// The second server passes on the keys of the first and adds its signature.
		notary := peer.Do(second, "GET", "/_matrix/key/v2/server", nil).JSON
		check := func(what string, answer *harness.Answer) {
			t.Helper()
			list := answer.JSON.Get("server_keys").Array()
			if answer.Status != 200 || len(list) != 1 || list[0].Get("server_name").Str != first.Name {
				t.Fatalf("%s: %v", what, answer)
			}
			for id, k := range notary.Get("verify_keys").Map() {
				key, _ := signing.DecodeBase64(k.Get("key").Str)
				if err := signing.VerifyJSON([]byte(list[0].Raw), second.Name, id, ed25519.PublicKey(key)); err != nil {
					t.Errorf("%s: the notary's signature: %v", what, err)
				}
			}
			if !list[0].Get("signatures").Get(harness.Key(first.Name)).Exists() {
				t.Errorf("%s: the server's own signature is lost", what)
			}
		}
		check("GET query", peer.Do(second, "GET", client.Path("/_matrix/key/v2/query/%s", first.Name), nil))
		check("POST query", peer.Do(second, "POST", "/_matrix/key/v2/query", harness.J{"server_keys": harness.J{first.Name: harness.J{}}}))
		for id := range own.JSON.Get("verify_keys").Map() {
			check("POST query of a key", peer.Do(second, "POST", "/_matrix/key/v2/query", harness.J{"server_keys": harness.J{
				first.Name: harness.J{id: harness.J{"minimum_valid_until_ts": time.Now().UnixMilli()}},
			}}))
		}
		// What is known is passed on when the server is gone.
		first.Stop()
		check("query of a server that is gone", peer.Do(second, "GET", client.Path("/_matrix/key/v2/query/%s", first.Name), nil))
		if none := peer.Do(second, "GET", client.Path("/_matrix/key/v2/query/%s", "localhost:1"), nil); none.Status != 200 || none.JSON.Get("server_keys.#").Int() != 0 {
			t.Errorf("keys of a server that does not exist: %v", none)
		}
	})
}

// TestStolenName has a peer publish keys in the name of another server.
func TestStolenName(t *testing.T) {
	servers := harness.Federation(t, storage.SQLite, 1)
	victim, thief := harness.NewPeer(t, nil), harness.NewPeer(t, nil)
	thief.Handle(http.NotFoundHandler())
	stolen := thief.Name
	thief.Name = victim.Name // its document now names the victim
	a := thief.Do(servers[0], "GET", client.Path("/_matrix/key/v2/query/%s", stolen), nil)
	if a.JSON.Get("server_keys.#").Int() != 0 {
		t.Errorf("the document of another server was believed: %v", a)
	}
}

// TestAnotherSigningKey rotates a server's key while another one knows the old one.
func TestAnotherSigningKey(t *testing.T) {
	harness.EachFederation(t, 2, func(t *testing.T, servers []*harness.Server) {
		alice, bob := servers[0].Register(t, "alice"), servers[1].Register(t, "bob")
		room, later := alice.Create(harness.J{"preset": "public_chat"}), alice.Create(harness.J{"preset": "public_chat"})
		joinThrough(t, bob, room, servers[0])
		alice.Text(room, "with the old key")
		hears(bob, room, "with the old key")
		peer := harness.NewPeer(t, nil)
		before := peer.Do(servers[0], "GET", "/_matrix/key/v2/server", nil).JSON.Get("verify_keys").Map()
		servers[0].RotateKey()
		after := peer.Do(servers[0], "GET", "/_matrix/key/v2/server", nil).JSON
		for id, k := range before {
			old := after.Get("old_verify_keys").Get(harness.Key(id))
			if after.Get("verify_keys").Get(harness.Key(id)).Exists() || old.Get("key").Str != k.Get("key").Str || old.Get("expired_ts").Int() == 0 {
				t.Errorf("the old key %s: %s", id, after.Raw)
			}
		}
		alice.Text(room, "with the new key")
		hears(bob, room, "with the new key")
		bob.Text(room, "answer")
		alice.Sync(nil)
		// What the old key signed is still good.
		joinThrough(t, bob, later, servers[0])
	})
}
