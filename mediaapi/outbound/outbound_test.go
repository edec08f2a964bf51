package outbound

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/myelin-im/myelin/internal/publicnet"
)

func TestCheck(t *testing.T) {
	c := New(Config{Deny: []string{"*.internal", "evil.example"}})
	for address, ok := range map[string]bool{
		"https://example.org/": true, "http://example.org:8080/x?y#z": true, "https://EXAMPLE.org.": true,
		"ftp://example.org/": false, "file:///etc/passwd": false, "gopher://x": false, "http://": false, "/relative": false,
		"http://user:pass@example.org/": false, "http://example.org:22/": false, "http://example.org:6379/": false,
		"http://db.internal/": false, "http://DB.Internal./": false, "https://evil.example/": false, "https://notevil.example/": true,
	} {
		u, err := url.Parse(address)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Check(u); (err == nil) != ok {
			t.Errorf("%s: %v", address, err)
		}
	}
	c = New(Config{Allow: []string{"*.example.org"}, Deny: []string{"bad.example.org"}})
	for host, ok := range map[string]bool{"www.example.org": true, "bad.example.org": false, "example.com": false} {
		if err := c.Check(&url.URL{Scheme: "https", Host: host}); (err == nil) != ok {
			t.Errorf("%s: %v", host, err)
		}
	}
}

func TestPrivateAddresses(t *testing.T) {
	var hits atomic.Int32
	target := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { hits.Add(1) }))
	defer target.Close()
	port := target.URL[strings.LastIndex(target.URL, ":")+1:]
	guarded := New(Config{})
	for _, address := range []string{
		target.URL, "http://localhost:" + port, "http://127.1:" + port, "http://[::1]:" + port, "http://[::ffff:127.0.0.1]:" + port,
		"http://0.0.0.0:" + port, "http://169.254.169.254/latest/meta-data", "http://10.0.0.1/", "http://[fe80::1]/", "http://127.0.0.1/", "http://2130706433/", "http://0x7f000001/",
	} {
		res, err := guarded.Get(context.Background(), address, nil)
		if err == nil {
			res.Body.Close()
			t.Errorf("%s was fetched", address)
		}
	}
	if hits.Load() != 0 {
		t.Errorf("the target was reached %d times", hits.Load())
	}
	if _, err := guarded.Get(context.Background(), "http://127.0.0.1/", nil); !errors.Is(err, publicnet.ErrNotPublic) {
		t.Errorf("loopback: %v", err)
	}
	open := New(Config{AllowPrivate: true})
	res, err := open.Get(context.Background(), target.URL, nil)
	if err != nil || res.StatusCode != 200 {
		t.Fatalf("where it is allowed: %v", err)
	}
	res.Body.Close()
}

func TestRedirects(t *testing.T) {
	target := httptest.NewServer(nil)
	defer target.Close()
	mux := http.NewServeMux()
	mux.HandleFunc("/loop", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/loop", http.StatusFound) })
	mux.HandleFunc("/file", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "file:///etc/passwd", http.StatusFound)
	})
	mux.HandleFunc("/denied", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://denied.example/", http.StatusFound)
	})
	mux.HandleFunc("/fine", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/end", http.StatusFound) })
	mux.HandleFunc("/end", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Referer") != "" || r.UserAgent() != "agent" {
			w.WriteHeader(400)
		}
	})
	target.Config.Handler = mux
	c := New(Config{AllowPrivate: true, Deny: []string{"denied.example"}, UserAgent: "agent"})
	for _, path := range []string{"/loop", "/file", "/denied"} {
		if res, err := c.Get(context.Background(), target.URL+path, nil); !errors.Is(err, ErrRefused) {
			t.Errorf("%s: %v, %v", path, res, err)
		}
	}
	res, err := c.Get(context.Background(), target.URL+"/fine", nil)
	if err != nil || res.StatusCode != 200 || res.Request.URL.Path != "/end" {
		t.Fatalf("a redirect: %v, %v", res, err)
	}
	res.Body.Close()
}

// TestRebinding has a name server that tells a public address first and a loopback address afterwards, and one that
// tells both at once. The loopback address is never connected to.
func TestRebinding(t *testing.T) {
	var hits atomic.Int32
	target := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { hits.Add(1) }))
	defer target.Close()
	private := [4]byte{127, 0, 0, 1}
	var asked atomic.Int32
	names := nameServer(t, func() [][4]byte {
		if asked.Add(1) == 1 {
			return [][4]byte{{192, 0, 2, 1}, private} // the first is for documentation: nobody answers, and it is refused as well
		}
		return [][4]byte{private}
	})
	c := New(Config{Resolver: names})
	c.cfg.AllowPrivate = true // of what Check checks, only the port matters here; the dialer keeps refusing
	address := strings.Replace(target.URL, "127.0.0.1", "rebind.example", 1)
	for range 4 {
		res, err := c.Get(context.Background(), address, nil)
		if err == nil {
			res.Body.Close()
		}
		if !errors.Is(err, publicnet.ErrNotPublic) {
			t.Errorf("fetched: %v", err)
		}
	}
	if hits.Load() != 0 || asked.Load() == 0 {
		t.Errorf("%d questions, %d requests", asked.Load(), hits.Load())
	}
}

// nameServer starts one that answers every question for an IPv4 address.
func nameServer(t *testing.T, addresses func() [][4]byte) *net.Resolver {
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	go func() {
		buf := make([]byte, 1500)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(buf[:n]) != nil || len(m.Questions) != 1 {
				continue
			}
			q := m.Questions[0]
			m.Header = dnsmessage.Header{ID: m.ID, Response: true, RecursionAvailable: true}
			m.Additionals = nil
			if q.Type == dnsmessage.TypeA {
				for _, a := range addresses() {
					m.Answers = append(m.Answers, dnsmessage.Resource{
						Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class}, Body: &dnsmessage.AResource{A: a},
					})
				}
			}
			if packed, err := m.Pack(); err == nil {
				conn.WriteTo(packed, from)
			}
		}
	}()
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", conn.LocalAddr().String())
	}}
}
