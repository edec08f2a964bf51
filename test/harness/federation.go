package harness

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
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/tidwall/gjson"

	"github.com/myelin-im/myelin/federation/client"
	"github.com/myelin-im/myelin/homeserver/config"
	"github.com/myelin-im/myelin/internal/signing"
	"github.com/myelin-im/myelin/storage"
	"github.com/myelin-im/myelin/storage/storagetest"
)

// authority is a certificate authority for the servers of one test process.
type authority struct {
	pool *x509.CertPool
	pem  []byte
	cert tls.Certificate // of localhost and the loopback addresses
}

var testAuthority = sync.OnceValues(newAuthority)

func newAuthority() (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	root := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority of the tests"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	rootDER, err := x509.CreateCertificate(rand.Reader, root, root, key.Public(), key)
	if err != nil {
		return nil, err
	}
	leafKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "localhost"}, NotBefore: root.NotBefore, NotAfter: root.NotAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv4(127, 0, 0, 2), net.IPv6loopback},
	}
	leafDER, err := x509.CreateCertificate(rand.Reader, leaf, root, leafKey.Public(), key)
	if err != nil {
		return nil, err
	}
	parsed, err := x509.ParseCertificate(rootDER)
	if err != nil {
		return nil, err
	}
	a := &authority{pool: x509.NewCertPool(), cert: tls.Certificate{Certificate: [][]byte{leafDER}, PrivateKey: leafKey}}
	a.pool.AddCert(parsed)
	a.pem = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: rootDER})
	return a, nil
}

// write puts the certificates into files and returns their paths.
func (a *authority) write(t testing.TB, folder string) (ca, cert, key string) {
	t.Helper()
	private, err := x509.MarshalPKCS8PrivateKey(a.cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	ca, cert, key = filepath.Join(folder, "ca.pem"), filepath.Join(folder, "cert.pem"), filepath.Join(folder, "key.pem")
	for file, content := range map[string][]byte{
		ca: a.pem, cert: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Certificate[0]}),
		key: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}),
	} {
		if err := os.WriteFile(file, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return ca, cert, key
}

// StablePort finds a free port of 127.0.0.1 that stays free while its server is started, and started again: one from
// which the system starts no connections of its own, and that no other test is given before this one ends, in whatever
// process: each belongs to who listens on another one beside it.
func StablePort(t testing.TB) int {
	t.Helper()
	const ports = 10_000
	for range 1000 {
		port := 12_000 + mathrand.IntN(ports)
		claim, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port+ports))
		if err != nil {
			continue
		}
		if socket, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			socket.Close()
			t.Cleanup(func() { claim.Close() })
			return port
		}
		claim.Close()
	}
	t.Fatal("there is no free port")
	return 0
}

// Federating makes a server one that others in this test reach, under the name localhost:port, over TLS, with
// certificates of an authority that they trust. It is an option of Start.
func Federating(t testing.TB) func(*config.Config) {
	t.Helper()
	a, err := testAuthority()
	if err != nil {
		t.Fatal(err)
	}
	ca, cert, key := a.write(t, t.TempDir())
	port := StablePort(t)
	return func(cfg *config.Config) {
		cfg.Server.Name = fmt.Sprintf("localhost:%d", port)
		cfg.Federation.Address = fmt.Sprintf("127.0.0.1:%d", port)
		cfg.Federation.TLSCert, cfg.Federation.TLSKey, cfg.Federation.CACert = cert, key, ca
		cfg.Federation.AllowPrivateAddresses = true
	}
}

// Federation starts n servers that federate, all on the same kind of database. The options change all their
// configurations.
func Federation(t testing.TB, d storage.Dialect, n int, options ...func(*config.Config)) []*Server {
	t.Helper()
	servers := make([]*Server, n)
	for i := range servers {
		servers[i] = Start(t, d, append([]func(*config.Config){Federating(t)}, options...)...)
	}
	return servers
}

// EachFederation runs fn as a subtest with n federating servers on each kind of database.
func EachFederation(t *testing.T, n int, fn func(t *testing.T, servers []*Server)) {
	t.Helper()
	for _, d := range storagetest.Dialects {
		t.Run(d.String(), func(t *testing.T) { fn(t, Federation(t, d, n)) })
	}
}

// Peer is another homeserver that a test plays itself: it publishes a key, signs requests, and answers as the test
// says.
type Peer struct {
	// Name is its server name, KeyID and Key what it signs with.
	Name  string
	KeyID string
	Key   ed25519.PrivateKey
	// Client makes its requests.
	Client *client.Client

	t      testing.TB
	server *http.Server
	mu     sync.Mutex
	serve  http.Handler // guarded by mu
}

// NewPeer starts a peer that answers requests, other than those for its keys, with a handler; nil answers 404. It stops
// when the test ends.
func NewPeer(t testing.TB, handler http.Handler) *Peer {
	t.Helper()
	a, err := testAuthority()
	if err != nil {
		t.Fatal(err)
	}
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	socket, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{a.cert}, MinVersion: tls.VersionTLS12})
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(socket.Addr().String())
	p := &Peer{Name: "localhost:" + port, KeyID: "ed25519:peer", Key: key, t: t, serve: handler}
	p.Client, err = client.New(client.Config{ServerName: p.Name, KeyID: p.KeyID, Key: key, CA: a.pool, AllowPrivate: true})
	if err != nil {
		t.Fatal(err)
	}
	p.server = &http.Server{Handler: http.HandlerFunc(p.answer), ReadHeaderTimeout: time.Minute}
	go func() {
		if err := p.server.Serve(socket); !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("serve the peer: %v", err)
		}
	}()
	t.Cleanup(func() {
		p.server.Close()
		p.Client.Close()
	})
	return p
}

// Handle changes what the peer answers.
func (p *Peer) Handle(handler http.Handler) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.serve = handler
}

func (p *Peer) answer(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	handler := p.serve
	p.mu.Unlock()
	switch {
	case r.URL.Path == "/_matrix/key/v2/server":
		w.Write(p.Keys())
	case handler != nil:
		handler.ServeHTTP(w, r)
	default:
		w.WriteHeader(http.StatusNotFound)
		w.Write([]byte(`{"errcode":"M_UNRECOGNIZED","error":"The peer does not do this"}`))
	}
}

// Keys is the peer's key document.
func (p *Peer) Keys() []byte {
	raw, err := json.Marshal(J{
		"server_name": p.Name, "valid_until_ts": time.Now().Add(24 * time.Hour).UnixMilli(), "old_verify_keys": J{},
		"verify_keys": J{p.KeyID: J{"key": signing.EncodeBase64(p.Key.Public().(ed25519.PublicKey))}},
	})
	if err == nil {
		raw, err = signing.SignJSON(raw, p.Name, p.KeyID, p.Key)
	}
	if err != nil {
		panic(err) // what is written above is JSON
	}
	return raw
}

// Do makes a signed request of the peer and fails the test if there is no answer. The body is nil for none, or anything
// that is encoded as JSON.
func (p *Peer) Do(to *Server, method, path string, body any) *Answer {
	p.t.Helper()
	r := client.Request{Server: to.Name, Method: method, Path: path, MaxBytes: 64 << 20}
	if raw, ok := body.(json.RawMessage); ok {
		r.Body = raw
	} else if body != nil {
		raw, err := json.Marshal(body)
		if err != nil {
			p.t.Fatal(err)
		}
		r.Body = raw
	}
	answer, err := p.Client.Do(context.Background(), r)
	var refused *client.Error
	if errors.As(err, &refused) {
		return &Answer{Status: refused.Status, Body: refused.Body, JSON: gjson.ParseBytes(refused.Body)}
	}
	if err != nil {
		p.t.Fatalf("%s %s: %v", method, path, err)
	}
	return &Answer{Status: http.StatusOK, Body: answer, JSON: gjson.ParseBytes(answer)}
}
