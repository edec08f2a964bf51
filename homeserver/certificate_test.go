package homeserver

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/myelin-im/myelin/homeserver/config"
)

func silentLog() *logrus.Logger {
	log := logrus.New()
	log.SetOutput(io.Discard)
	return log
}

// writeCertificate makes a self-signed certificate for loopback, at l's paths, last changed at the given time.
func writeCertificate(t *testing.T, l config.Listener, serial int64, changed time.Time) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(serial), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{{127, 0, 0, 1}}}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for path, block := range map[string]*pem.Block{
		l.TLSCert: {Type: "CERTIFICATE", Bytes: cert}, l.TLSKey: {Type: "PRIVATE KEY", Bytes: secret},
	} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, changed, changed); err != nil {
			t.Fatal(err)
		}
	}
}

func tlsListener(t *testing.T) config.Listener {
	folder := t.TempDir()
	return config.Listener{Address: "127.0.0.1:0", TLSCert: filepath.Join(folder, "cert.pem"), TLSKey: filepath.Join(folder, "key.pem")}
}

func TestRenewedCertificateIsRead(t *testing.T) {
	l := tlsListener(t)
	changed := time.Now().Add(-time.Hour)
	writeCertificate(t, l, 1, changed)
	c, err := loadCertificate(l, silentLog().WithField("test", t.Name()))
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	c.now = func() time.Time { return now }
	expect := func(serial int64, when string) {
		t.Helper()
		pair, err := c.get(nil)
		if err != nil {
			t.Fatal(err)
		}
		leaf, err := x509.ParseCertificate(pair.Certificate[0])
		if err != nil || leaf.SerialNumber.Int64() != serial {
			t.Errorf("%s: certificate %v instead of %d (%v)", when, leaf.SerialNumber, serial, err)
		}
	}
	expect(1, "at first")
	writeCertificate(t, l, 2, changed.Add(time.Minute))
	expect(1, "before the next look")
	now = now.Add(certificateCheck)
	expect(2, "after the next look")
	if err := os.WriteFile(l.TLSCert, []byte("half written"), 0o600); err != nil {
		t.Fatal(err)
	}
	now = now.Add(certificateCheck)
	expect(2, "while the file is bad")
	writeCertificate(t, l, 3, changed.Add(2*time.Minute))
	now = now.Add(certificateCheck)
	expect(3, "when it is good again")
}

func TestListenerServesTLSAndDrains(t *testing.T) {
	cfg := tlsListener(t)
	writeCertificate(t, cfg, 1, time.Now())
	l, err := listen(context.Background(), "test", cfg, silentLog())
	if err != nil {
		t.Fatal(err)
	}
	arrived, finish := make(chan struct{}), make(chan struct{})
	ended := make(chan error, 1)
	l.serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(arrived)
		<-finish
		_, _ = io.WriteString(w, r.Proto)
	}), ended)

	client := http.Client{Transport: &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}} // #nosec G402
	answer := make(chan string, 1)
	go func() {
		r, err := client.Get(l.url())
		if err != nil {
			answer <- err.Error()
			return
		}
		defer r.Body.Close()
		body, _ := io.ReadAll(r.Body)
		answer <- string(body)
	}()
	<-arrived
	drained := make(chan struct{})
	go func() {
		l.drain(context.Background())
		close(drained)
	}()
	if err := <-ended; err != nil {
		t.Errorf("serve ended with %v", err)
	}
	close(finish)
	if got := <-answer; got != "HTTP/2.0" {
		t.Errorf("the request under way was answered %q", got)
	}
	<-drained
	if _, err := client.Get(l.url()); err == nil {
		t.Error("a request after the end was answered")
	}
}

func TestDrainCutsOffWhatTakesTooLong(t *testing.T) {
	l, err := listen(context.Background(), "test", config.Listener{Address: "127.0.0.1:0"}, silentLog())
	if err != nil {
		t.Fatal(err)
	}
	arrived := make(chan struct{})
	ended := make(chan error, 1)
	l.serve(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(arrived)
		<-r.Context().Done()
	}), ended)
	failed := make(chan error, 1)
	go func() {
		r, err := http.Get(l.url())
		if err == nil {
			r.Body.Close()
		}
		failed <- err
	}()
	<-arrived
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	l.drain(ctx)
	if err := <-failed; err == nil {
		t.Error("the request was answered")
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
