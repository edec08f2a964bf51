package scenario

import (
	"net/url"
	"os"
	"path/filepath"
	"testing"

	"github.com/myelin-im/myelin/homeserver/config"
	"github.com/myelin-im/myelin/storage/storagetest"
	. "github.com/myelin-im/myelin/test/harness"
)

// TestStrangersLearnNothing checks that somebody who is not in a room gets the same answers as for a room that does not
// exist, to the letter.
func TestStrangersLearnNothing(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob, mallory := s.Register(t, "alice"), s.Register(t, "bob"), s.Register(t, "mallory")
		id := alice.Create(J{"invite": []string{bob.UserID}})
		bob.Join(id)
		event := alice.Text(id, "secret")
		for _, r := range []struct {
			method, path string
			segments     []string
			body         any
		}{
			{"PUT", "/rooms/%s/send/m.room.message/a", nil, J{"body": "x"}},
			{"PUT", "/rooms/%s/state/m.room.name/", nil, J{"name": "x"}},
			{"PUT", "/rooms/%s/state/m.room.member/%s", []string{bob.UserID}, J{"membership": "ban"}},
			{"PUT", "/rooms/%s/typing/%s", []string{mallory.UserID}, J{"typing": true}},
			{"POST", "/rooms/%s/receipt/m.read/%s", []string{event}, J{}},
			{"POST", "/rooms/%s/invite", nil, J{"user_id": bob.UserID}},
			{"POST", "/rooms/%s/kick", nil, J{"user_id": bob.UserID}},
			{"POST", "/rooms/%s/kick", nil, J{"user_id": "@nobody:" + s.Name}},
			{"POST", "/rooms/%s/ban", nil, J{"user_id": bob.UserID}},
			{"POST", "/rooms/%s/unban", nil, J{"user_id": bob.UserID}},
			{"POST", "/rooms/%s/leave", nil, J{}},
			{"POST", "/rooms/%s/upgrade", nil, J{"new_version": "12"}},
			{"GET", "/rooms/%s/event/%s", []string{event}, nil},
			{"GET", "/rooms/%s/context/%s", []string{event}, nil},
			{"GET", "/rooms/%s/messages?dir=b", nil, nil},
			{"GET", "/rooms/%s/members", nil, nil},
			{"GET", "/rooms/%s/aliases", nil, nil},
			{"PUT", "/directory/room/%[2]s", []string{"#a:" + s.Name}, J{"room_id": id}},
		} {
			ask := func(room string) *Answer {
				body := r.body
				if b, ok := body.(J); ok && b["room_id"] != nil {
					body = J{"room_id": room}
				}
				path := Path(r.path, append([]string{room}, r.segments...)...)
				return mallory.Do(r.method, path, body)
			}
			real, none := ask(id), ask("!nothing:"+s.Name)
			if real.Status < 400 || real.String() != none.String() {
				t.Errorf("%s %s: %s, but of a room that does not exist: %s", r.method, r.path, real, none)
			}
		}
	})
}

// TestAliasesOfBridges checks that nobody else makes aliases in the exclusive namespace of an application service.
func TestAliasesOfBridges(t *testing.T) {
	file := filepath.Join(t.TempDir(), "bridge.yaml")
	err := os.WriteFile(file, []byte(`
id: bridge
url: null
as_token: token of the bridge
hs_token: token of the server
sender_localpart: bridge
namespaces:
  aliases: [{exclusive: true, regex: "#_irc_.*"}]
`), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range storagetest.Dialects {
		t.Run(d.String(), func(t *testing.T) {
			s := Start(t, d, func(cfg *config.Config) { cfg.Appservices.Files = []string{file} })
			alice := s.Register(t, "alice")
			bridge := s.Client(t)
			bridge.UserID, bridge.Token = "@bridge:"+s.Name, "token of the bridge"
			id := alice.Create(J{"preset": "public_chat"})
			alias := func(localpart string) string { return Path("/directory/room/%s", "#"+localpart+":"+s.Name) }
			alice.Refused(400, "M_EXCLUSIVE", "PUT", alias("_irc_a"), J{"room_id": id})
			alice.Refused(400, "M_EXCLUSIVE", "POST", "/_matrix/client/v3/createRoom", J{"room_alias_name": "_irc_a"})
			alice.Must("PUT", alias("irc_a"), J{"room_id": id})
			bridge.Must("PUT", alias("_irc_a"), J{"room_id": id}) // which is in no room
		})
	}
}

// TestPartsOfContext checks that the filter of /context applies to the state, too, and that a page without events says
// that there are more.
func TestPartsOfContext(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice := s.Register(t, "alice")
		id := alice.Create(J{"name": "of the room"})
		event := alice.Text(id, "here")
		filter := url.Values{"filter": {`{"types":["m.room.name","m.room.topic"]}`}}
		r := alice.Must("GET", Path("/rooms/%s/context/%s?", id, event)+filter.Encode(), nil).JSON
		if state := r.Get("state.#.type").String(); state != `["m.room.name"]` || r.Get("event.event_id").Str != event {
			t.Errorf("with a filter: %s", r)
		}
		if r = alice.Must("GET", Path("/rooms/%s/context/%s", id, event), nil).JSON; !Find(r.Get("state"), "m.room.create", "").Exists() {
			t.Errorf("without a filter: %s", r)
		}
		r = alice.Must("GET", Path("/rooms/%s/messages?dir=b&limit=0", id), nil).JSON
		if len(r.Get("chunk").Array()) != 0 || !r.Get("end").Exists() {
			t.Errorf("a page of none: %s", r)
		}
		r = alice.Must("GET", Path("/rooms/%s/messages?dir=b&from=", id)+url.QueryEscape(r.Get("end").Str), nil).JSON
		if r.Get("chunk.0.event_id").Str != event {
			t.Errorf("the page after that: %s", r)
		}
	})
}
