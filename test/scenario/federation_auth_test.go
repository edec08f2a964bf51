package scenario

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/tidwall/gjson"

	"github.com/myelin-im/myelin/federation/client"
	"github.com/myelin-im/myelin/homeserver/config"
	"github.com/myelin-im/myelin/internal/signing"
	"github.com/myelin-im/myelin/storage"
	"github.com/myelin-im/myelin/test/harness"
)

// spec: server-server-api v1.19 "Request Authentication"
func TestWhoseRequestsAreBelieved(t *testing.T) {
	s := harness.Federation(t, storage.SQLite, 1)[0]
	alice := s.Register(t, "alice")
	peer := harness.NewPeer(t, nil)
	_, wrong, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	target := query("/_matrix/federation/v1/query/profile", "user_id", alice.UserID)
	sign := func(origin, destination, method, path, body string, key ed25519.PrivateKey) string {
		var content []byte
		if body != "" {
			content = []byte(body)
		}
		return signing.Sign(client.RequestBytes(origin, destination, method, path, content), key)
	}
	header := func(origin, destination, key, signature string) string {
		h := fmt.Sprintf(`X-Matrix origin="%s",key="%s",sig="%s"`, origin, key, signature)
		if destination != "" {
			h += fmt.Sprintf(`,destination="%s"`, destination)
		}
		return h
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}} // it is the other side that is tested
	defer transport.CloseIdleConnections()
	do := func(method, path, body string, headers ...string) (int, gjson.Result) {
		t.Helper()
		req, err := http.NewRequest(method, "https://"+s.Name+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		for _, h := range headers {
			req.Header.Add("Authorization", h)
		}
		res, err := transport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		raw, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, gjson.ParseBytes(raw)
	}
	good := header(peer.Name, s.Name, peer.KeyID, sign(peer.Name, s.Name, "GET", target, "", peer.Key))
	other := harness.NewPeer(t, nil)
	for _, c := range []struct {
		name    string
		headers []string
		status  int
	}{
		{"good", []string{good}, 200},
		{"without destination", []string{header(peer.Name, "", peer.KeyID, sign(peer.Name, "", "GET", target, "", peer.Key))}, 200},
		{"the second of two signatures", []string{header(peer.Name, s.Name, "ed25519:unknown", "AAAA"), good}, 200},
		{"an access token beside it", []string{"Bearer x", good}, 200},
		{"none", nil, 401},
		{"an access token", []string{"Bearer " + alice.Token}, 401},
		{"malformed", []string{`X-Matrix origin="` + peer.Name + `"`}, 401},
		{"signed for another server", []string{header(peer.Name, "other.org", peer.KeyID, sign(peer.Name, "other.org", "GET", target, "", peer.Key))}, 401},
		{"destination not signed", []string{header(peer.Name, s.Name, peer.KeyID, sign(peer.Name, "", "GET", target, "", peer.Key))}, 401},
		{"another method", []string{header(peer.Name, s.Name, peer.KeyID, sign(peer.Name, s.Name, "PUT", target, "", peer.Key))}, 401},
		{"another target", []string{header(peer.Name, s.Name, peer.KeyID, sign(peer.Name, s.Name, "GET", target+"x", "", peer.Key))}, 401},
		{"a body that is not there", []string{header(peer.Name, s.Name, peer.KeyID, sign(peer.Name, s.Name, "GET", target, "{}", peer.Key))}, 401},
		{"another key", []string{header(peer.Name, s.Name, peer.KeyID, sign(peer.Name, s.Name, "GET", target, "", wrong))}, 401},
		{"an unknown key", []string{header(peer.Name, s.Name, "ed25519:unknown", sign(peer.Name, s.Name, "GET", target, "", peer.Key))}, 401},
		{"no signature", []string{header(peer.Name, s.Name, peer.KeyID, "")}, 401},
		{"the name of another server", []string{header(other.Name, s.Name, peer.KeyID, sign(other.Name, s.Name, "GET", target, "", peer.Key))}, 401},
		{"our own name", []string{header(s.Name, s.Name, peer.KeyID, sign(s.Name, s.Name, "GET", target, "", peer.Key))}, 401},
		{"a server that does not exist", []string{header("localhost:1", s.Name, peer.KeyID, sign("localhost:1", s.Name, "GET", target, "", peer.Key))}, 401},
		{"no server name", []string{header("../x", s.Name, peer.KeyID, sign("../x", s.Name, "GET", target, "", peer.Key))}, 401},
		{"two origins", []string{header(other.Name, s.Name, "ed25519:x", "AAAA"), good}, 401},
	} {
		status, answer := do("GET", target, "", c.headers...)
		if status != c.status || status == 401 && answer.Get("errcode").Str != "M_UNAUTHORIZED" {
			t.Errorf("%s: %d %s, want %d", c.name, status, answer.Raw, c.status)
		}
	}

	// The body is signed as what it means and not as it is written.
	const search = "/_matrix/federation/v1/publicRooms"
	signed := header(peer.Name, s.Name, peer.KeyID, sign(peer.Name, s.Name, "POST", search, `{"filter":{"generic_search_term":"é"},"limit":1}`, peer.Key))
	for body, want := range map[string]int{
		`{ "limit": 1, "filter": {"generic_search_term": "\u00e9"} }`: 200,
		`{"filter":{"generic_search_term":"é"},"limit":2}`:            401,
		``:           401,
		`{"limit":1`: 400,
		"\"\xff\"":   400,
	} {
		if status, answer := do("POST", search, body, signed); status != want {
			t.Errorf("body %q: %d %s, want %d", body, status, answer.Raw, want)
		}
	}
}

func TestDeniedServers(t *testing.T) {
	peer, friend := harness.NewPeer(t, nil), harness.NewPeer(t, nil)
	s := harness.Start(t, storage.SQLite, harness.Federating(t), func(cfg *config.Config) { cfg.Federation.Deny = []string{peer.Name, "*.evil.org"} })
	alice := s.Register(t, "alice")
	path := query("/_matrix/federation/v1/query/profile", "user_id", alice.UserID)
	if a := peer.Do(s, "GET", path, nil); a.Status != 403 || a.Code() != "M_FORBIDDEN" {
		t.Errorf("a denied server: %v", a)
	}
	if a := friend.Do(s, "GET", path, nil); a.Status != 200 {
		t.Errorf("another server: %v", a)
	}
	asked := false
	peer.Handle(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked = true }))
	if a, err := alice.Send("GET", harness.Path("/profile/%s", "@x:"+peer.Name), nil); err != nil || a.Status != 502 || asked {
		t.Errorf("a denied server's profile: %v, %v; asked: %v", a, err, asked)
	}
}

// TestSlowRequestsAreCutOff opens connections that send next to nothing, and uses the server meanwhile.
func TestSlowRequestsAreCutOff(t *testing.T) {
	t.Parallel() // it waits most of the time
	s := harness.Federation(t, storage.SQLite, 1)[0]
	alice := s.Register(t, "alice")
	peer := harness.NewPeer(t, nil)
	var conns []net.Conn
	for i := range 200 {
		conn, err := net.DialTimeout("tcp", strings.Replace(s.Name, "localhost", "127.0.0.1", 1), 10*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if i%2 == 0 { // half of them never begin with TLS, the others never end their headers
			conns = append(conns, conn)
			continue
		}
		secure := tls.Client(conn, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}}) // it is the other side that is tested
		if _, err := io.WriteString(secure, "PUT /_matrix/federation/v1/send/1 HTTP/1.1\r\nHost: x\r\nX: "); err != nil {
			t.Fatal(err)
		}
		conns = append(conns, conn)
	}
	begin := time.Now()
	if a := peer.Do(s, "GET", query("/_matrix/federation/v1/query/profile", "user_id", alice.UserID), nil); a.Status != 200 {
		t.Errorf("a request beside slow ones: %v", a)
	}
	t.Logf("a request beside %d slow ones took %v", len(conns), time.Since(begin))
	// The server hangs up on those that do not go on.
	for _, conn := range conns[:2] {
		conn.SetReadDeadline(time.Now().Add(45 * time.Second))
		if _, err := io.Copy(io.Discard, conn); err != nil {
			t.Errorf("a connection that sends nothing stays open: %v", err)
		}
	}
}
