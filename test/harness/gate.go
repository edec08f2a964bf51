package harness

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/myelin-im/myelin/homeserver/config"
)

// Gate stands before the federation listener of a server: other servers reach it through the gate, which can keep requests
// waiting or refuse them, and change their answers.
type Gate struct {
	t testing.TB

	mu    sync.Mutex
	rules []*gateRule
}

type gateRule struct {
	part   string // of the path
	status int    // 0: wait
	change func(answer []byte) []byte
	open   chan struct{}
}

// NewGate makes a gate, and the option of Start for the server behind it.
func NewGate(t testing.TB) (*Gate, func(*config.Config)) {
	t.Helper()
	federating := Federating(t)
	a, err := testAuthority()
	if err != nil {
		t.Fatal(err)
	}
	g := &Gate{t: t}
	behind := StablePort(t)
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "https", Host: fmt.Sprintf("127.0.0.1:%d", behind)})
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: a.pool, MinVersion: tls.VersionTLS12}}
	proxy.Transport = transport
	proxy.ErrorLog = log.New(io.Discard, "", 0)
	proxy.ModifyResponse = g.answer
	return g, func(cfg *config.Config) {
		federating(cfg)
		front := cfg.Federation.Address
		cfg.Federation.Address = fmt.Sprintf("127.0.0.1:%d", behind)
		socket, err := net.Listen("tcp", front)
		if err != nil {
			t.Fatal(err)
		}
		server := &http.Server{Handler: g.guard(proxy), ReadHeaderTimeout: time.Minute, ErrorLog: proxy.ErrorLog}
		listener := tls.NewListener(socket, &tls.Config{Certificates: []tls.Certificate{a.cert}, MinVersion: tls.VersionTLS12})
		go func() { _ = server.Serve(listener) }() // it ends when the server is closed
		t.Cleanup(func() {
			g.Open()
			server.Close()
			transport.CloseIdleConnections()
		})
	}
}

// Hold keeps requests waiting whose path contains a part, until Open.
func (g *Gate) Hold(part string) { g.rule(&gateRule{part: part, open: make(chan struct{})}) }

// Refuse answers requests whose path contains a part with a status, until Open.
func (g *Gate) Refuse(part string, status int) {
	g.rule(&gateRule{part: part, status: status, open: make(chan struct{})})
}

// Change lets answers to requests whose path contains a part be others, until Open.
func (g *Gate) Change(part string, change func(answer []byte) []byte) {
	g.rule(&gateRule{part: part, change: change, open: make(chan struct{})})
}

func (g *Gate) rule(r *gateRule) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.rules = append(g.rules, r)
}

// Open lets everything through, also what waits.
func (g *Gate) Open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, r := range g.rules {
		close(r.open)
	}
	g.rules = nil
}

// ruleFor is the rule for a request, or nil.
func (g *Gate) ruleFor(r *http.Request) *gateRule {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, rule := range g.rules {
		if strings.Contains(r.URL.Path, rule.part) {
			return rule
		}
	}
	return nil
}

func (g *Gate) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rule := g.ruleFor(r)
		switch {
		case rule == nil:
		case rule.change != nil:
			r.Header.Del("Accept-Encoding") // what is compressed cannot be changed
		case rule.status != 0:
			w.WriteHeader(rule.status)
			fmt.Fprint(w, `{"errcode":"M_UNKNOWN","error":"The gate is closed"}`)
			return
		default:
			select {
			case <-rule.open:
			case <-r.Context().Done():
				return
			}
		}
		next.ServeHTTP(w, r)
	})
}

// answer changes an answer on its way back.
func (g *Gate) answer(res *http.Response) error {
	rule := g.ruleFor(res.Request)
	if rule == nil || rule.change == nil {
		return nil
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return err
	}
	body = rule.change(body)
	res.Body, res.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	res.Header.Set("Content-Length", strconv.Itoa(len(body)))
	return nil
}
