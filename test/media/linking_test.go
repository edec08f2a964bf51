package media

import (
	"net/url"
	"strings"
	"testing"

	"github.com/tidwall/gjson"

	"github.com/myelin-im/myelin/homeserver/config"
	"github.com/myelin-im/myelin/storage"
	. "github.com/myelin-im/myelin/test/harness"
)

const restricted = "/_matrix/client/unstable/org.matrix.msc3911/media"

func linking(c *config.Config) { c.Media.Linking = true }

// secret uploads restricted media.
func secret(t testing.TB, c *Client, content string) string {
	t.Helper()
	a := do(t, c, "POST", restricted+"/upload", strings.NewReader(content), "Content-Type", "text/plain")
	uri, ok := strings.CutPrefix(a.JSON.Get("content_uri").Str, "mxc://")
	if !ok {
		t.Fatalf("upload: %v", a)
	}
	return uri
}

// sendWith sends a message with media attached.
func sendWith(c *Client, room, txn, id string) *Answer {
	return c.Do("PUT", Path("/rooms/%s/send/m.room.message/%s", room, txn)+"?org.matrix.msc3911.attach_media="+url.QueryEscape("mxc://"+id),
		J{"msgtype": "m.file", "body": "f", "url": "mxc://" + id})
}

func TestLinking(t *testing.T) {
	each(t, func(t *testing.T, s *Server, _ string) {
		alice, bob, eve := s.Register(t, "alice"), s.Register(t, "bob"), s.Register(t, "eve")
		room := alice.Create(J{"preset": "private_chat", "invite": []string{bob.UserID}})
		bob.Join(room)
		id := secret(t, alice, "for the room")
		sees := func(c *Client, id string, want bool) {
			t.Helper()
			a := do(t, c, "GET", v1+"/download/"+id, nil)
			if want != (a.Status == 200) || !want && (a.Status != 403 || a.Code() != "M_UNAUTHORIZED") {
				t.Errorf("%s: %v, want %v", c.UserID, a, want)
			}
		}
		sees(alice, id, true)
		sees(bob, id, false)
		expect(t, "without a token", do(t, s.Client(t), "GET", legacy+"/download/"+id, nil), 404, "M_NOT_FOUND")
		if a := sendWith(bob, room, Txn(), id); a.Status != 400 || a.Code() != "M_INVALID_PARAM" {
			t.Errorf("somebody else's media: %v", a)
		}
		txn := Txn()
		first := sendWith(alice, room, txn, id)
		if again := sendWith(alice, room, txn, id); first.Status != 200 || again.JSON.Get("event_id").Str != first.JSON.Get("event_id").Str {
			t.Errorf("sent twice: %v, %v", first, again)
		}
		if a := sendWith(alice, room, Txn(), id); a.Status != 400 || a.Code() != "M_INVALID_PARAM" {
			t.Errorf("attached twice: %v", a)
		}
		sees(bob, id, true)
		sees(eve, id, false)
		expect(t, "a copy by a stranger", eve.Do("POST", restricted+"/copy/"+id, J{}), 403, "M_UNAUTHORIZED")

		// Bob forwards it.
		copied := strings.TrimPrefix(bob.Must("POST", restricted+"/copy/"+id, J{}).JSON.Get("content_uri").Str, "mxc://")
		other := bob.Create(J{"preset": "private_chat", "invite": []string{eve.UserID}})
		eve.Join(other)
		if a := sendWith(bob, other, Txn(), copied); a.Status != 200 {
			t.Errorf("forwarded: %v", a)
		}
		sees(eve, copied, true)
		sees(eve, id, false)
		alice.Redact(room, first.JSON.Get("event_id").Str)
		sees(bob, id, false)
		sees(eve, copied, true)

		// What is an avatar is for everybody.
		face := secret(t, alice, "a face")
		sees(eve, face, false)
		alice.Must("PUT", Path("/profile/%s/avatar_url", alice.UserID), J{"avatar_url": "mxc://" + face})
		sees(eve, face, true)
	}, linking)
}

func TestLinkingBetweenServers(t *testing.T) {
	servers := Federation(t, storage.SQLite, 2, linking)
	alice, bob, eve := servers[0].Register(t, "alice"), servers[1].Register(t, "bob"), servers[1].Register(t, "eve")
	room := alice.Create(J{"preset": "public_chat", "room_alias_name": "room"})
	bob.Join("#room:" + servers[0].Name)
	early, id := secret(t, alice, "not attached"), secret(t, alice, "for the room")
	if a := do(t, bob, "GET", v1+"/download/"+early, nil); a.Status == 200 {
		t.Error("what is attached to nothing is served")
	}
	event := sendWith(alice, room, Txn(), id).JSON.Get("event_id").Str
	bob.Until("the message", func(gjson.Result) bool {
		return bob.Do("GET", Path("/rooms/%s/event/%s", room, event), nil).Status == 200
	})
	if a := do(t, bob, "GET", v1+"/download/"+id, nil); a.Status != 200 || string(a.Body) != "for the room" {
		t.Errorf("a member: %v", a)
	}
	expect(t, "no member", do(t, eve, "GET", v1+"/download/"+id, nil), 403, "M_UNAUTHORIZED")
}

func TestNoLinking(t *testing.T) {
	s, _ := start(t, storage.SQLite)
	alice := s.Register(t, "alice")
	expect(t, "where it is off", do(t, alice, "POST", restricted+"/upload", strings.NewReader("x")), 404, "M_UNRECOGNIZED")
	room := alice.Create(J{})
	if a := sendWith(alice, room, Txn(), s.Name+"/x"); a.Status != 400 {
		t.Errorf("%v", a)
	}
}
