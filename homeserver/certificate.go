package homeserver

import (
	"crypto/tls"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/myelin-im/myelin/homeserver/config"
)

// certificateCheck is how often, at most, the file of a certificate is looked at for a renewed one.
const certificateCheck = time.Minute

// certificate is a certificate on disk, read anew after it has been renewed, so that a renewal needs no restart.
type certificate struct {
	certFile, keyFile string
	log               *logrus.Entry
	now               func() time.Time

	mu       sync.Mutex
	current  *tls.Certificate // guarded by mu, as are the following
	modified time.Time        // of certFile when current was read
	checked  time.Time
}

// loadCertificate reads the certificate of a listener, or returns nil if it has none.
func loadCertificate(l config.Listener, log *logrus.Entry) (*certificate, error) {
	if l.TLSCert == "" {
		return nil, nil
	}
	c := &certificate{certFile: l.TLSCert, keyFile: l.TLSKey, log: log, now: time.Now}
	c.checked = c.now()
	if err := c.read(); err != nil {
		return nil, fmt.Errorf("read TLS certificate: %w", err)
	}
	return c, nil
}

func (c *certificate) read() error {
	info, err := os.Stat(c.certFile)
	if err != nil {
		return err
	}
	pair, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
	if err != nil {
		return err
	}
	c.current, c.modified = &pair, info.ModTime()
	return nil
}

// get is tls.Config.GetCertificate.
func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := c.now(); now.Sub(c.checked) >= certificateCheck {
		c.checked = now
		if info, err := os.Stat(c.certFile); err != nil || !info.ModTime().Equal(c.modified) {
			// A renewal may be half done: certificate written, key not yet. The old pair serves until both fit.
			if err := c.read(); err != nil {
				c.log.WithError(err).Warn("the renewed TLS certificate cannot be read; the old one stays in use")
			} else {
				c.log.Info("TLS certificate read anew")
			}
		}
	}
	return c.current, nil
}

func (c *certificate) tlsConfig() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: c.get}
}
