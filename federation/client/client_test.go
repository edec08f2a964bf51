package client

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/myelin-im/myelin/internal/publicnet"
	"github.com/myelin-im/myelin/internal/signing"
)

// internet is a small one: listeners under made-up addresses, with certificates of one authority.
type internet struct {
	t     *testing.T
	pool  *x509.CertPool
	ca    *x509.Certificate
	caKey *ecdsa.PrivateKey

	mu      sync.Mutex
	places  map[string]string // host:port to what is really dialled
	dialled []string
	srv     map[string][]*net.SRV // by _service._tcp.name
}

func newInternet(t *testing.T) *internet {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	n := &internet{t: t, pool: x509.NewCertPool(), caKey: key, places: map[string]string{}, srv: map[string][]*net.SRV{}}
	n.ca = &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, n.ca, n.ca, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	if n.ca, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	n.pool.AddCert(n.ca)
	return n
}

// certificate makes one for names and IP addresses.
func (n *internet) certificate(names ...string) tls.Certificate {
	n.t.Helper()
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: n.ca.NotBefore, NotAfter: n.ca.NotAfter, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			leaf.IPAddresses = append(leaf.IPAddresses, ip)
		} else {
			leaf.DNSNames = append(leaf.DNSNames, name)
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		n.t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, n.ca, key.Public(), n.caKey)
	if err != nil {
		n.t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// serve listens at a made-up address with a certificate for some names.
func (n *internet) serve(at string, handler http.HandlerFunc, names ...string) {
	n.t.Helper()
	socket, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{n.certificate(names...)}, MinVersion: tls.VersionTLS12})
	if err != nil {
		n.t.Fatal(err)
	}
	server := &http.Server{Handler: handler, ErrorLog: nil, ReadHeaderTimeout: time.Minute}
	go server.Serve(socket)
	n.t.Cleanup(func() { server.Close() })
	n.mu.Lock()
	defer n.mu.Unlock()
	n.places[at] = socket.Addr().String()
}

func (n *internet) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	n.mu.Lock()
	n.dialled = append(n.dialled, addr)
	to, ok := n.places[addr]
	n.mu.Unlock()
	if !ok {
		return nil, fmt.Errorf("nobody listens at %s", addr)
	}
	return new(net.Dialer).DialContext(ctx, network, to)
}

func (n *internet) lookupSRV(_ context.Context, service, proto, name string) (string, []*net.SRV, error) {
	if list := n.srv["_"+service+"._"+proto+"."+name]; len(list) > 0 {
		return "", list, nil
	}
	return "", nil, &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
}

var testKey = ed25519.NewKeyFromSeed(make([]byte, 32))

func (n *internet) client() *Client {
	n.t.Helper()
	c, err := New(Config{ServerName: "us.org", KeyID: "ed25519:1", Key: testKey, CA: n.pool})
	if err != nil {
		n.t.Fatal(err)
	}
	c.dial, c.lookupSRV = n.dial, n.lookupSRV
	n.t.Cleanup(c.Close)
	return c
}

// reached answers with the Host header and the certificate's name of a request.
func reached(w http.ResponseWriter, r *http.Request) {
	fmt.Fprintf(w, `{"host":%q,"sni":%q}`, r.Host, r.TLS.ServerName)
}

func delegates(to string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintf(w, `{"m.server":%q}`, to) }
}

// spec: server-server-api v1.19 "Resolving server names"
func TestResolution(t *testing.T) {
	for _, c := range []struct {
		name, server string
		wellKnown    string // m.server of the server's host; empty for 404
		srv          map[string][]*net.SRV
		at           string // where the server listens
		certificate  string
		host, sni    string
	}{
		{"1: IP address", "1.2.3.4", "", nil, "1.2.3.4:8448", "1.2.3.4", "1.2.3.4", ""},
		{"1: IP address and port", "1.2.3.4:5", "", nil, "1.2.3.4:5", "1.2.3.4", "1.2.3.4:5", ""},
		{"1: IPv6 address", "[2001::4]", "", nil, "[2001::4]:8448", "2001::4", "[2001::4]", ""},
		{"1: IPv6 address and port", "[2001::4]:5", "", nil, "[2001::4]:5", "2001::4", "[2001::4]:5", ""},
		{"2: port", "a.org:5", "wrong.org", nil, "a.org:5", "a.org", "a.org:5", "a.org"},
		{"2: default port of https", "a.org:443", "wrong.org", nil, "a.org:443", "a.org", "a.org:443", "a.org"},
		{"3.1: delegated to an IP address", "a.org", "1.2.3.4", nil, "1.2.3.4:8448", "1.2.3.4", "1.2.3.4", ""},
		{"3.1: delegated to an IP address and port", "a.org", "1.2.3.4:5", nil, "1.2.3.4:5", "1.2.3.4", "1.2.3.4:5", ""},
		{"3.2: delegated to a port", "a.org", "b.org:5", nil, "b.org:5", "b.org", "b.org:5", "b.org"},
		{"3.3: delegated to an SRV record", "a.org", "b.org", map[string][]*net.SRV{
			"_matrix-fed._tcp.b.org": {{Target: "c.org.", Port: 5}}, "_matrix._tcp.b.org": {{Target: "wrong.org.", Port: 5}},
		}, "c.org:5", "b.org", "b.org", "b.org"},
		{"3.4: delegated to an old SRV record", "a.org", "b.org", map[string][]*net.SRV{"_matrix._tcp.b.org": {{Target: "c.org.", Port: 5}}}, "c.org:5", "b.org", "b.org", "b.org"},
		{"3.5: delegated to a host", "a.org", "b.org", nil, "b.org:8448", "b.org", "b.org", "b.org"},
		{"3.5: the delegated name is not delegated again", "a.org", "a.org", nil, "a.org:8448", "a.org", "a.org", "a.org"},
		{"3.5: delegated to a name as people read it", "a.org", "bücher.example", nil, "xn--bcher-kva.example:8448", "xn--bcher-kva.example", "xn--bcher-kva.example", "xn--bcher-kva.example"},
		{"4: SRV record", "a.org", "", map[string][]*net.SRV{"_matrix-fed._tcp.a.org": {{Target: "c.org.", Port: 5}}}, "c.org:5", "a.org", "a.org", "a.org"},
		{"4: second target", "a.org", "", map[string][]*net.SRV{"_matrix-fed._tcp.a.org": {{Target: "gone.org.", Port: 5}, {Target: "c.org.", Port: 6}}}, "c.org:6", "a.org", "a.org", "a.org"},
		{"5: old SRV record", "a.org", "", map[string][]*net.SRV{"_matrix._tcp.a.org": {{Target: "c.org.", Port: 5}}}, "c.org:5", "a.org", "a.org", "a.org"},
		{"6: host", "a.org", "", nil, "a.org:8448", "a.org", "a.org", "a.org"},
		{"invalid delegation", "a.org", "not a name", nil, "a.org:8448", "a.org", "a.org", "a.org"},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newInternet(t)
			n.srv = c.srv
			n.serve(c.at, reached, c.certificate)
			if c.wellKnown != "" {
				n.serve("a.org:443", func(w http.ResponseWriter, r *http.Request) {
					if r.URL.Path == "/.well-known/matrix/server" {
						delegates(c.wellKnown)(w, r)
						return
					}
					reached(w, r)
				}, "a.org")
			} else if c.at != "a.org:443" {
				n.serve("a.org:443", http.NotFound, "a.org")
			}
			if c.at == "a.org:443" {
				n.serve(c.at, reached, c.certificate)
			}
			answer, err := n.client().Do(t.Context(), Request{Server: c.server, Method: "GET", Path: "/_matrix/x"})
			if want := fmt.Sprintf(`{"host":%q,"sni":%q}`, c.host, c.sni); err != nil || string(answer) != want {
				t.Errorf("%s, %v; want %s", answer, err, want)
			}
		})
	}
}

func TestCertificates(t *testing.T) {
	n := newInternet(t)
	n.serve("a.org:443", delegates("b.org:5"), "a.org")
	n.serve("b.org:5", reached, "a.org") // of the name before the delegation
	n.serve("c.org:5", reached, "1.2.3.4")
	n.srv["_matrix-fed._tcp.d.org"] = []*net.SRV{{Target: "e.org.", Port: 1}, {Target: "e.org.", Port: 2}}
	n.serve("e.org:1", reached, "e.org") // of the target
	n.serve("e.org:2", reached, "d.org")
	c := n.client()
	for _, server := range []string{"a.org", "c.org:5"} {
		var invalid *tls.CertificateVerificationError
		if answer, err := c.Do(t.Context(), Request{Server: server, Method: "GET", Path: "/_matrix/x"}); !errors.As(err, &invalid) {
			t.Errorf("%s: %s, %v", server, answer, err)
		}
	}
	// The second target of d.org has the right certificate.
	if answer, err := c.Do(t.Context(), Request{Server: "d.org", Method: "GET", Path: "/_matrix/x"}); err != nil {
		t.Errorf("d.org: %s, %v", answer, err)
	}
}

func TestDelegationsAreRemembered(t *testing.T) {
	n := newInternet(t)
	asked, status, header := 0, 200, ""
	n.serve("a.org:443", func(w http.ResponseWriter, _ *http.Request) {
		asked++
		w.Header().Set("Cache-Control", header)
		w.WriteHeader(status)
		io.WriteString(w, `{"m.server":"b.org:5"}`)
	}, "a.org")
	c := n.client()
	now := time.Now()
	c.discovery.now = func() time.Time { return now }
	step := func(what string, after time.Duration, to string, requests int) {
		t.Helper()
		now = now.Add(after)
		before := asked
		if got, err := c.discovery.delegated(t.Context(), "a.org"); err != nil || got != to || asked-before != requests {
			t.Errorf("%s: %s, %v after %d requests; want %s after %d", what, got, err, asked-before, to, requests)
		}
	}
	header = "public, max-age=3600"
	step("first", 0, "b.org:5", 1)
	step("remembered", 59*time.Minute, "b.org:5", 0)
	header = "no-store"
	step("expired", 2*time.Minute, "b.org:5", 1)
	step("not for each request", time.Minute, "b.org:5", 0)
	header = "max-age=99999999"
	step("expired again", 5*time.Minute, "b.org:5", 1)
	step("for long", 47*time.Hour, "b.org:5", 0)
	status = 503
	step("broken for a moment", 2*time.Hour, "a.org", 1) // but the last answer is older than 48 hours
	status = 200
	step("failure remembered", 30*time.Second, "a.org", 0)
	step("works again", time.Minute, "b.org:5", 1)
	status = 503
	step("broken, but known", 48*time.Hour, "b.org:5", 1)
	step("still known", time.Minute, "a.org", 1)
	step("backing off", 90*time.Second, "a.org", 0)
	status = 404
	step("gone", 2*time.Hour, "a.org", 1)
}

func TestWellKnownIsBounded(t *testing.T) {
	n := newInternet(t)
	n.serve("big.org:443", func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, `{"m.server":"b.org:5","x":"`+strings.Repeat("x", maxWellKnown)+`"}`)
	}, "big.org")
	n.serve("loop.org:443", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, r.URL.Path, http.StatusFound) }, "loop.org")
	n.serve("plain.org:443", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://plain.org/.well-known/matrix/server", http.StatusFound)
	}, "plain.org")
	n.serve("moved.org:443", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "https://other.org/file", http.StatusFound)
	}, "moved.org")
	n.serve("other.org:443", delegates("b.org:5"), "other.org")
	n.serve("wrong.org:443", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, `{"m.server":5}`) }, "wrong.org")
	c := n.client()
	for server, want := range map[string]string{
		"big.org": "big.org", "loop.org": "loop.org", "plain.org": "plain.org", "moved.org": "b.org:5", "wrong.org": "wrong.org", "silent.org": "silent.org",
	} {
		if got, err := c.discovery.delegated(t.Context(), server); err != nil || got != want {
			t.Errorf("%s: %s, %v; want %s", server, got, err, want)
		}
	}
}

func TestFreshness(t *testing.T) {
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		header http.Header
		want   time.Duration
	}{
		{http.Header{}, 24 * time.Hour},
		{http.Header{"Cache-Control": {"max-age=7200"}}, 2 * time.Hour},
		{http.Header{"Cache-Control": {"Public", `MAX-AGE="7200"`}}, 2 * time.Hour},
		{http.Header{"Cache-Control": {"max-age=7200"}, "Age": {"3600"}}, time.Hour},
		{http.Header{"Cache-Control": {"max-age=7200"}, "Expires": {"0"}}, 2 * time.Hour},
		{http.Header{"Cache-Control": {"max-age=x"}}, 24 * time.Hour},
		{http.Header{"Cache-Control": {"max-age=0"}}, 5 * time.Minute},
		{http.Header{"Cache-Control": {"max-age=-1"}}, 5 * time.Minute},
		{http.Header{"Cache-Control": {"no-cache"}}, 5 * time.Minute},
		{http.Header{"Cache-Control": {"max-age=999999"}}, 48 * time.Hour},
		{http.Header{"Expires": {"Tue, 01 Jan 2030 03:00:00 GMT"}}, 3 * time.Hour},
		{http.Header{"Expires": {"0"}}, 5 * time.Minute},
	} {
		if got := freshness(c.header, now); got != c.want {
			t.Errorf("%v: %v, want %v", c.header, got, c.want)
		}
	}
}

func TestParseName(t *testing.T) {
	for server, want := range map[string]string{
		"a.org": "a.org 0", "a.org:8448": "a.org 8448", "localhost:1": "localhost 1", "1.2.3.4": "1.2.3.4 0 ip", "1.2.3.4:5": "1.2.3.4 5 ip",
		"[::1]": "::1 0 ip", "[::1]:65535": "::1 65535 ip", "A.ORG": "A.ORG 0",
		"": "", "a.org:": "", "a.org:0": "", "a.org:65536": "", "a.org:x": "", "a.org:+1": "", "a.org:000001": "", "::1": "", "[::1": "", "[::1]x": "",
		"[1.2.3.4]": "", "[fe80::1%25eth0]": "", "a b": "", "a_b.org": "", "a.org/x": "", "ä.org": "", "a.org:1:2": "", strings.Repeat("a", 256): "",
	} {
		got := ""
		if name, ok := ParseName(server); ok {
			got = fmt.Sprint(name.Host, " ", name.Port)
			if name.IP.IsValid() {
				got += " ip"
			}
		}
		if got != want {
			t.Errorf("%q: %q, want %q", server, got, want)
		}
	}
}

// spec: server-server-api v1.19 "Request Authentication"
func TestRequestsAreSigned(t *testing.T) {
	n := newInternet(t)
	var header, target, body string
	n.serve("a.org:5", func(w http.ResponseWriter, r *http.Request) {
		raw, _ := io.ReadAll(r.Body)
		header, target, body = r.Header.Get("Authorization"), r.RequestURI, string(raw)
		io.WriteString(w, `{}`)
	}, "a.org")
	c := n.client()
	path := Path("/_matrix/federation/v1/x/%s", "!a/b:c%?#é") + "?q=a%20b"
	if _, err := c.Do(t.Context(), Request{Server: "a.org:5", Method: "PUT", Path: path, Body: json.RawMessage(`{ "b":1, "a": "é" }`)}); err != nil {
		t.Fatal(err)
	}
	if target != "/_matrix/federation/v1/x/%21a%2Fb:c%25%3F%23%C3%A9?q=a%20b" || body != `{"a":"é","b":1}` {
		t.Errorf("sent %s with %s", target, body)
	}
	prefix := `X-Matrix origin="us.org",destination="a.org:5",key="ed25519:1",sig="`
	signature, ok := strings.CutPrefix(strings.TrimSuffix(header, `"`), prefix)
	if !ok {
		t.Fatalf("header %s", header)
	}
	signed := fmt.Sprintf(`{"content":%s,"destination":"a.org:5","method":"PUT","origin":"us.org","uri":%q}`, body, target)
	if err := signing.Verify([]byte(signed), signature, testKey.Public().(ed25519.PublicKey)); err != nil {
		t.Errorf("signature: %v", err)
	}
	if _, err := c.Do(t.Context(), Request{Server: "a.org:5", Method: "GET", Path: "/_matrix/x"}); err != nil || body != "" {
		t.Errorf("GET: %v, body %q", err, body)
	}
	if _, err := c.Do(t.Context(), Request{Server: "a.org:5", Method: "GET", Path: "/_matrix/x", Unsigned: true}); err != nil || header != "" {
		t.Errorf("unsigned: %v, header %q", err, header)
	}
}

func TestAnswersAreBounded(t *testing.T) {
	n := newInternet(t)
	done := make(chan struct{})
	n.serve("a.org:5", func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/_matrix/large", "/_matrix/chunked":
			if r.URL.Path == "/_matrix/chunked" {
				w.(http.Flusher).Flush()
			}
			io.WriteString(w, `"`+strings.Repeat("x", 1000)+`"`)
		case "/_matrix/deep":
			io.WriteString(w, strings.Repeat("[", 100_000)+strings.Repeat("]", 100_000))
		case "/_matrix/text":
			io.WriteString(w, "hello")
		case "/_matrix/latin":
			io.WriteString(w, "\"\xe9\"")
		case "/_matrix/refused":
			w.Header().Set("Retry-After", "7")
			w.WriteHeader(429)
			io.WriteString(w, `{"errcode":"M_LIMIT_EXCEEDED","error":"slow down"}`)
		case "/_matrix/broken":
			w.WriteHeader(502)
			io.WriteString(w, "<html>")
		case "/_matrix/moved":
			http.Redirect(w, r, "/_matrix/text", http.StatusFound)
		case "/_matrix/hangs":
			select {
			case <-done:
			case <-r.Context().Done():
			}
		}
	}, "a.org")
	defer close(done)
	c := n.client()
	do := func(path string, r Request) error {
		r.Server, r.Method, r.Path = "a.org:5", "GET", "/_matrix/"+path
		_, err := c.Do(t.Context(), r)
		return err
	}
	for _, path := range []string{"large", "chunked"} {
		if err := do(path, Request{MaxBytes: 1002}); err != nil {
			t.Errorf("%s: %v", path, err)
		}
		if err := do(path, Request{MaxBytes: 1001}); !errors.Is(err, ErrTooLarge) {
			t.Errorf("%s, too large: %v", path, err)
		}
	}
	for _, path := range []string{"deep", "text", "latin"} {
		if err := do(path, Request{}); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", path, err)
		}
	}
	var refused *Error
	if err := do("refused", Request{}); !errors.As(err, &refused) || refused.Status != 429 || refused.Code != "M_LIMIT_EXCEEDED" || refused.RetryAfter != 7*time.Second {
		t.Errorf("refused: %v", err)
	}
	for path, status := range map[string]int{"broken": 502, "moved": 302} {
		if err := do(path, Request{}); !errors.As(err, &refused) || refused.Status != status || refused.Code != "" {
			t.Errorf("%s: %v", path, err)
		}
	}
	begin := time.Now()
	if err := do("hangs", Request{Timeout: 50 * time.Millisecond}); !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) > 10*time.Second {
		t.Errorf("hangs: %v after %v", err, time.Since(begin))
	}
	res, err := c.Stream(t.Context(), Request{Server: "a.org:5", Method: "GET", Path: "/_matrix/large"})
	if err != nil {
		t.Fatal(err)
	}
	if body, err := io.ReadAll(res.Body); err != nil || len(body) != 1002 {
		t.Errorf("stream: %d bytes, %v", len(body), err)
	}
	res.Body.Close()
	if _, err := c.Stream(t.Context(), Request{Server: "a.org:5", Method: "GET", Path: "/_matrix/hangs", Timeout: 50 * time.Millisecond}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("stream that hangs: %v", err)
	}
}

func TestConnectionsAreReused(t *testing.T) {
	n := newInternet(t)
	n.serve("a.org:5", reached, "a.org")
	c := n.client()
	for range 5 {
		if _, err := c.Do(t.Context(), Request{Server: "a.org:5", Method: "GET", Path: "/_matrix/x"}); err != nil {
			t.Fatal(err)
		}
	}
	// net/http gives a connection up whose writing goroutine was not seen to end within 50 ms.
	if len(n.dialled) > 2 {
		t.Errorf("dialled %q", n.dialled)
	}
}

func TestWhomWeDoNotAsk(t *testing.T) {
	socket, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	_, port, _ := net.SplitHostPort(socket.Addr().String())
	c, err := New(Config{ServerName: "us.org", KeyID: "ed25519:1", Key: testKey, Allowed: func(server string) bool { return server != "bad.org" }})
	if err != nil {
		t.Fatal(err)
	}
	for server, want := range map[string]error{
		"us.org": ErrSelf, "bad.org": ErrNotAllowed, "not a name": ErrBadName, "": ErrBadName,
		"127.0.0.1:" + port: publicnet.ErrNotPublic, "localhost:" + port: publicnet.ErrNotPublic, "[::ffff:127.0.0.1]:" + port: publicnet.ErrNotPublic,
	} {
		if _, err := c.Do(t.Context(), Request{Server: server, Method: "GET", Path: "/_matrix/x"}); !errors.Is(err, want) {
			t.Errorf("%q: %v, want %v", server, err, want)
		}
	}
	for _, path := range []string{"", "/x", "/_matrix/a b", "/_matrix/a\r\nb", "/_matrix/é"} {
		if _, err := c.Do(t.Context(), Request{Server: "a.org", Method: "GET", Path: path}); err == nil {
			t.Errorf("path %q was sent", path)
		}
	}
}

func FuzzParseName(f *testing.F) {
	for _, seed := range []string{"a.org", "[::1]:80", "1.2.3.4:5", "a:b:c"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, server string) {
		name, ok := ParseName(server)
		if !ok {
			return
		}
		if strings.ContainsAny(server, "/?#@ \t\r\n\x00\"\\") || name.Host == "" || name.Port < 0 || name.Port > 65535 {
			t.Errorf("%q is taken for a server name: %+v", server, name)
		}
	})
}

// TestServersThatCannotBeReached counts how often a server that is gone is dialled.
func TestServersThatCannotBeReached(t *testing.T) {
	n := newInternet(t)
	c := n.client()
	now := time.Now()
	c.failures.now = func() time.Time { return now }
	ask := func(what string, r Request, dials int, want error) {
		t.Helper()
		before := len(n.dialled)
		r.Server, r.Method, r.Path = "a.org:5", "GET", "/_matrix/x"
		_, err := c.Do(t.Context(), r)
		if (err == nil) != (want == nil) || want != nil && errors.Is(err, ErrUnreachable) != errors.Is(want, ErrUnreachable) || len(n.dialled)-before != dials {
			t.Errorf("%s: %v after dialling %d times", what, err, len(n.dialled)-before)
		}
	}
	gone := errors.New("nobody there")
	ask("first", Request{}, 1, gone)
	ask("at once", Request{}, 0, ErrUnreachable)
	ask("by somebody who insists", Request{Try: true}, 1, gone)
	ask("for keys", Request{Unsigned: true}, 1, gone)
	now = now.Add(maxUnreachable)
	ask("later", Request{}, 1, gone)
	c.Reached("a.org:5")
	ask("after it was heard of", Request{}, 1, gone)
	n.serve("a.org:5", reached, "a.org")
	ask("while it is back", Request{}, 0, ErrUnreachable)
	ask("by somebody who insists while it is back", Request{Try: true}, 1, nil)
	c.Close()
	ask("after that", Request{}, 1, nil)
}
