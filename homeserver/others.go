package homeserver

import (
	"crypto/x509"
	"errors"
	"fmt"
	"os"

	"github.com/sirupsen/logrus"

	"github.com/myelin-im/myelin/federation"
	"github.com/myelin-im/myelin/federation/client"
	"github.com/myelin-im/myelin/federation/keys"
	"github.com/myelin-im/myelin/homeserver/config"
	"github.com/myelin-im/myelin/homeserver/signingkey"
	"github.com/myelin-im/myelin/storage"
)

// others is how this server reaches other ones, and what it believes of them.
type others struct {
	policy *federation.Policy
	client *client.Client
	keys   *keys.Ring
}

func newOthers(cfg *config.Config, db *storage.DB, key signingkey.Key, log *logrus.Entry) (*others, error) {
	o := &others{policy: federation.NewPolicy(cfg.Federation.Allow, cfg.Federation.Deny)}
	authorities, err := loadAuthorities(cfg.Federation.CACert)
	if err != nil {
		return nil, err
	}
	o.client, err = client.New(client.Config{
		ServerName: cfg.Server.Name, KeyID: key.ID, Key: key.Private, CA: authorities,
		AllowPrivate: cfg.Federation.AllowPrivateAddresses, Allowed: o.policy.Allows, Log: log,
	})
	if err != nil {
		return nil, fmt.Errorf("set up requests to other servers: %w", err)
	}
	var old []keys.Old
	for _, k := range key.Old {
		old = append(old, keys.Old{ID: k.ID, Key: k.Public, Expired: k.Expired})
	}
	o.keys, err = keys.New(keys.Config{
		ServerName: cfg.Server.Name, KeyID: key.ID, Key: key.Private, Old: old, Notaries: cfg.Federation.TrustedKeyServers,
		DB: db, Client: o.client, Log: log,
	})
	if err != nil {
		return nil, fmt.Errorf("set up keys of other servers: %w", err)
	}
	return o, nil
}

// loadAuthorities returns the system's authorities and those of a file, or nil without one.
func loadAuthorities(file string) (*x509.CertPool, error) {
	if file == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(file) // #nosec G304: the operator names the file
	if err != nil {
		return nil, fmt.Errorf("read federation.ca_cert: %w", err)
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	if !pool.AppendCertsFromPEM(pem) {
		return nil, errors.New("federation.ca_cert holds no certificate")
	}
	return pool, nil
}
