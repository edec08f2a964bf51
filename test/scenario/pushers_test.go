package scenario

import (
	"crypto/ecdh"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tidwall/gjson"

	. "github.com/myelin-im/myelin/test/harness"
)

// gateway is a push gateway that takes down what it is told.
type gateway struct {
	*httptest.Server
	t *testing.T

	mu     sync.Mutex
	fail   bool // answer 502
	reject string
	got    chan gjson.Result
}

func newGateway(t *testing.T) *gateway {
	g := &gateway{t: t, got: make(chan gjson.Result, 1000)}
	g.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil || r.URL.Path != "/_matrix/push/v1/notify" || r.Method != http.MethodPost || r.Header.Get("Content-Type") != "application/json" {
			t.Errorf("a request to the gateway: %s %s, %v", r.Method, r.URL, err)
		}
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.fail {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		rejected := []string{}
		if g.reject != "" {
			rejected = append(rejected, g.reject)
		}
		g.got <- gjson.GetBytes(body, "notification")
		if err := json.NewEncoder(w).Encode(J{"rejected": rejected}); err != nil {
			t.Error(err)
		}
	}))
	t.Cleanup(g.Close)
	return g
}

func (g *gateway) set(fail bool, reject string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.fail, g.reject = fail, reject
}

// next is what the gateway is told next.
func (g *gateway) next() gjson.Result {
	g.t.Helper()
	select {
	case n := <-g.got:
		return n
	case <-time.After(time.Minute):
		g.t.Fatal("the gateway was told nothing")
	}
	return gjson.Result{}
}

// nothing checks that the gateway was told nothing more before something that is told last.
func (g *gateway) nothing() {
	g.t.Helper()
	select {
	case n := <-g.got:
		g.t.Errorf("the gateway was told too much: %s", n)
	default:
	}
}

func pusherOf(g *gateway, pushkey, format string) J {
	data := J{"url": g.URL + "/_matrix/push/v1/notify", "brand": "x"}
	if format != "" {
		data["format"] = format
	}
	return J{"kind": "http", "app_id": "im.myelin.test", "pushkey": pushkey, "app_display_name": "Test", "device_display_name": "Phone", "lang": "en", "data": data}
}

func (g *gateway) install(c *Client, pushkey, format string) {
	c.Must("POST", Path("/pushers/set"), pusherOf(g, pushkey, format))
}

// A gateway hears of exactly what the rules say, with everything that it needs.
func TestPusher(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		g := newGateway(t)
		alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
		g.install(bob, "key", "")
		alice.Must("PUT", Path("/profile/%s/displayname", alice.UserID), J{"displayname": "Alice"})
		id := alice.Create(J{"name": "Tea", "preset": "private_chat", "invite": []string{bob.UserID}})
		n := g.next()
		if n.Get("type").Str != "m.room.member" || !n.Get("user_is_target").Bool() || n.Get("room_id").Str != id || n.Get("content.membership").Str != "invite" {
			t.Errorf("invite: %s", n)
		}
		bob.Join(id)
		alice.State(id, "m.room.topic", "", J{"topic": "not told"})
		event := alice.Text(id, "hello bob")
		n = g.next()
		for path, want := range map[string]string{
			"event_id": event, "room_id": id, "type": "m.room.message", "sender": alice.UserID, "sender_display_name": "Alice", "room_name": "Tea",
			"content.body": "hello bob", "counts.unread": "1", "prio": "high", "devices.#": "1", "devices.0.app_id": "im.myelin.test",
			"devices.0.pushkey": "key", "devices.0.data.brand": "x", "devices.0.data.url": "", "devices.0.tweaks.highlight": "", "devices.0.tweaks.sound": "default",
		} {
			if got := n.Get(path).String(); got != want {
				t.Errorf("%s is %q, want %q, in %s", path, got, want, n)
			}
		}
		// Reading elsewhere tells the number alone.
		bob.Must("POST", Path("/rooms/%s/receipt/m.read/%s", id, event), J{})
		if n = g.next(); n.Get("event_id").Exists() || n.Get("counts.unread").Int() != 0 {
			t.Errorf("after reading: %s", n)
		}
		bob.Text(id, "my own")
		bob.Must("PUT", "/_matrix/client/v3/pushrules/global/room/"+id, J{"actions": []string{}})
		alice.Text(id, "muted")
		bob.Must("DELETE", "/_matrix/client/v3/pushrules/global/room/"+id, nil)
		last := alice.Text(id, "last")
		if n = g.next(); n.Get("event_id").Str != last {
			t.Errorf("told %s, want the event after the muted one", n)
		}
		g.nothing()
	})
}

func TestPusherSurvives(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		g := newGateway(t)
		alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
		id := alice.Create(J{"preset": "public_chat"})
		bob.Join(id)
		g.install(bob, "key", "event_id_only")
		g.set(true, "")
		var sent []string
		for _, body := range []string{"one", "two", "three"} {
			sent = append(sent, alice.Text(id, body))
		}
		s.Restart() // what could not be told is told after it
		g.set(false, "")
		for i, want := range sent {
			n := g.next()
			if n.Get("event_id").Str != want || n.Get("room_id").Str != id || n.Get("content").Exists() || n.Get("sender").Exists() {
				t.Errorf("notification %d: %s, want %s alone", i, n, want)
			}
		}
		// A pushkey that is void takes the pusher with it.
		g.set(false, "key")
		alice.Text(id, "four")
		g.next()
		deadline := time.Now().Add(time.Minute)
		for len(bob.Must("GET", Path("/pushers"), nil).JSON.Get("pushers").Array()) != 0 {
			if time.Now().After(deadline) {
				t.Fatal("the rejected pusher is still there")
			}
			time.Sleep(5 * time.Millisecond)
		}
	})
}

// A browser is told without any gateway but this server.
func TestPusherOfABrowser(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		got := make(chan http.Header, 10)
		service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			got <- r.Header
			w.WriteHeader(http.StatusGone)
		}))
		t.Cleanup(service.Close)
		alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
		id := alice.Create(J{"preset": "public_chat"})
		bob.Join(id)
		vapid := bob.Must("GET", Path("/capabilities"), nil).JSON.Get(`capabilities.org\.matrix\.msc4174\.webpush.vapid`).Str
		key, err := ecdh.P256().GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		p := J{"kind": "webpush", "app_id": "web", "pushkey": base64.RawURLEncoding.EncodeToString(key.PublicKey().Bytes()), "app_display_name": "Web",
			"device_display_name": "Browser", "lang": "en", "data": J{"url": service.URL + "/push/1", "auth": base64.RawURLEncoding.EncodeToString(make([]byte, 16))}}
		bob.Must("POST", Path("/pushers/set"), p)
		alice.Text(id, "hello")
		select {
		case h := <-got:
			if h.Get("Content-Encoding") != "aes128gcm" || !strings.Contains(h.Get("Authorization"), vapid) || vapid == "" {
				t.Errorf("the push service got %v, and the key is %q", h, vapid)
			}
		case <-time.After(time.Minute):
			t.Fatal("the push service was handed nothing")
		}
		// It says that the subscription is gone.
		deadline := time.Now().Add(time.Minute)
		for len(bob.Must("GET", Path("/pushers"), nil).JSON.Get("pushers").Array()) != 0 {
			if time.Now().After(deadline) {
				t.Fatal("the pusher of a subscription that is gone is still there")
			}
			time.Sleep(5 * time.Millisecond)
		}
		p["pushkey"] = "no key"
		bob.Refused(400, "M_INVALID_PARAM", "POST", Path("/pushers/set"), p)
	})
}

func TestPushersEndpoints(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		g := newGateway(t)
		alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
		phone := alice.Login()
		g.install(alice, "desk", "")
		g.install(phone, "phone", "")
		pushers := func(c *Client) (keys string) {
			for _, p := range c.Must("GET", Path("/pushers"), nil).JSON.Get("pushers").Array() {
				keys += p.Get("pushkey").Str + " "
			}
			return keys
		}
		if got := pushers(alice); got != "desk phone " {
			t.Errorf("pushers: %q", got)
		}
		p := alice.Must("GET", Path("/pushers"), nil).JSON.Get("pushers.0")
		if p.Get("kind").Str != "http" || p.Get("lang").Str != "en" || p.Get("data.brand").Str != "x" || p.Get("app_display_name").Str != "Test" {
			t.Errorf("pusher: %s", p)
		}
		// The same key set by another user, with and without append.
		both := pusherOf(g, "desk", "")
		both["append"] = true
		bob.Must("POST", Path("/pushers/set"), both)
		if pushers(alice) != "desk phone " {
			t.Error("append removed the other user's pusher")
		}
		g.install(bob, "desk", "")
		if got := pushers(alice); got != "phone " {
			t.Errorf("the device of another user now, still told: %q", got)
		}
		phone.Must("POST", Path("/logout"), nil)
		if got := pushers(alice); got != "" {
			t.Errorf("after the device's logout: %q", got)
		}
		bob.Must("POST", Path("/pushers/set"), J{"kind": nil, "app_id": "im.myelin.test", "pushkey": "desk"})
		if got := pushers(bob); got != "" {
			t.Errorf("after deleting: %q", got)
		}
		for name, change := range map[string]J{
			"no lang":      {"lang": nil},
			"kind":         {"kind": "carrier pigeon"},
			"url":          {"data": J{"url": "https://example.org/"}},
			"no url":       {"data": J{}},
			"scheme":       {"data": J{"url": "gopher://example.org/_matrix/push/v1/notify"}},
			"long pushkey": {"pushkey": string(make([]byte, 513))},
		} {
			body := pusherOf(g, "k", "")
			for k, v := range change {
				body[k] = v
			}
			if a, err := alice.Send("POST", Path("/pushers/set"), body); err != nil || a.Status != 400 {
				t.Errorf("%s: %v, %v", name, a, err)
			}
		}
	})
}
