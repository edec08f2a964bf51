// Package harness starts real servers inside a test and talks to them as a client does.
//
// A server listens on a loopback port of its own, on either database, with cheap password hashes and without rate
// limits; it is up in a few milliseconds. When it stops, its database is checked against its log
// (roomserver.CheckConsistency), so every test that uses it is a test of that as well.
package harness

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/myelin-im/myelin/homeserver"
	"github.com/myelin-im/myelin/homeserver/config"
	"github.com/myelin-im/myelin/homeserver/signingkey"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/storage"
	"github.com/myelin-im/myelin/storage/storagetest"
)

// Server is a running homeserver.
type Server struct {
	// Name is its server name.
	Name string
	// URL is where clients reach it. It changes with Restart.
	URL string

	t    testing.TB
	cfg  *config.Config
	http *http.Client

	stop  context.CancelFunc
	ended chan error
	log   *logWatch
}

const sharedSecret = "secret of the tests"

// Each runs fn as a subtest with a server on each kind of database.
func Each(t *testing.T, fn func(t *testing.T, s *Server)) {
	t.Helper()
	for _, d := range storagetest.Dialects {
		t.Run(d.String(), func(t *testing.T) { fn(t, Start(t, d)) })
	}
}

// Start starts a server on a fresh database. It stops, and its database is checked, when the test ends. The options
// change its configuration.
func Start(t testing.TB, d storage.Dialect, options ...func(*config.Config)) *Server {
	t.Helper()
	cfg := config.Default()
	cfg.Server.Name = "myelin.test"
	cfg.Server.DataDir = t.TempDir()
	cfg.Client.Address = "127.0.0.1:0"
	if d == storage.PostgreSQL {
		cfg.Database.URL = storagetest.URL(t, d)
	}
	cfg.Registration.Open = true
	cfg.Registration.Guests = true
	cfg.Registration.SharedSecret = sharedSecret
	cfg.Passwords.Memory, cfg.Passwords.Iterations = 8<<10, 1
	cfg.RateLimits.Enabled = false
	cfg.Push.AllowPrivateAddresses = true
	cfg.Federation.TrustedKeyServers = nil // nothing outside of the test
	for _, option := range options {
		option(cfg)
	}
	s := &Server{Name: cfg.Server.Name, t: t, cfg: cfg, log: &logWatch{}, http: &http.Client{
		Transport: &http.Transport{MaxIdleConnsPerHost: 200},
		Timeout:   time.Minute,
	}}
	s.start()
	t.Cleanup(func() {
		s.Stop()
		s.log.report(t)
	})
	return s
}

func (s *Server) start() {
	s.t.Helper()
	log := logrus.New()
	log.SetOutput(io.Discard)
	log.AddHook(s.log)
	ctx, stop := context.WithCancel(context.Background())
	server, err := homeserver.New(ctx, s.cfg, log)
	if err != nil {
		stop()
		s.t.Fatalf("start the server: %v", err)
	}
	s.URL, s.stop, s.ended = server.ClientURL(), stop, make(chan error, 1)
	go func() { s.ended <- server.Run(ctx, nil) }()
}

// Stop ends the server in order and checks its database. A stopped server stays stopped until Resume.
func (s *Server) Stop() {
	s.t.Helper()
	if s.stop == nil {
		return
	}
	s.stop()
	s.stop = nil
	s.http.CloseIdleConnections()
	select {
	case err := <-s.ended:
		if err != nil {
			s.t.Errorf("the server ended with: %v", err)
		}
	case <-time.After(time.Minute):
		s.t.Error("the server did not end within a minute")
		return
	}
	s.check()
}

// Resume starts a server again that Stop has stopped.
func (s *Server) Resume() {
	s.t.Helper()
	s.start()
}

// Restart stops the server, checks its database and starts it again.
func (s *Server) Restart() {
	s.t.Helper()
	s.Stop()
	s.start()
}

// RotateKey stops the server, gives it another signing key and starts it again.
func (s *Server) RotateKey() {
	s.t.Helper()
	s.Stop()
	if _, err := signingkey.Rotate(filepath.Join(s.cfg.Server.DataDir, "signing.key"), time.Now()); err != nil {
		s.t.Fatal(err)
	}
	s.start()
}

// check compares the tables of the stopped server with its log.
func (s *Server) check() {
	s.t.Helper()
	Check(s.t, s.database(), s.Name, s.cfg.Server.DataDir)
}

// database is the URL of the server's database.
func (s *Server) database() string {
	if url := s.cfg.Database.URL; url != "" {
		return url
	}
	return "sqlite://" + filepath.Join(s.cfg.Server.DataDir, "myelin.db")
}

// Check compares the tables of a database that no server has open with its log.
func Check(t testing.TB, url, serverName, dataDir string) {
	t.Helper()
	rooms, db := openRooms(t, url, serverName, dataDir)
	defer db.Close(context.Background())
	if err := rooms.CheckConsistency(context.Background()); err != nil {
		t.Errorf("consistency after the server's end:\n%v", err)
	}
}

// openRooms opens the rooms of a database that no server has open.
func openRooms(t testing.TB, url, serverName, dataDir string) (*roomserver.Server, *storage.DB) {
	t.Helper()
	ctx := context.Background()
	key, err := signingkey.Load(filepath.Join(dataDir, "signing.key"))
	if err != nil {
		t.Fatal(err)
	}
	db, err := storage.Open(ctx, storage.Options{URL: url}, roomserver.Schema)
	if err != nil {
		t.Fatalf("open the stopped server's database: %v", err)
	}
	log := logrus.New()
	log.SetOutput(io.Discard)
	rooms, err := roomserver.New(db, roomserver.Options{ServerName: serverName, KeyID: key.ID, Key: key.Private, OldKeys: key.OldPublic(), Log: log.WithField("part", "check")})
	if err != nil {
		t.Fatal(err)
	}
	return rooms, db
}

// Populate stops the server, lets n users of it that have no accounts join a public room, and starts it again.
func (s *Server) Populate(roomID string, n int) {
	s.t.Helper()
	s.Stop()
	rooms, db := openRooms(s.t, s.database(), s.Name, s.cfg.Server.DataDir)
	_, err := rooms.Turn(context.Background(), roomID, func(t *roomserver.Turn) error {
		for i := range n {
			user := fmt.Sprintf("@member%d:%s", i, s.Name)
			if _, err := t.SetMembership(roomserver.MembershipChange{
				RoomID: roomID, Sender: user, Target: user, Membership: roomserver.Join, Content: map[string]any{"displayname": fmt.Sprintf("Member %d", i)},
			}); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil { // nobody else is to hear of it
		err = db.Write(context.Background(), func(tx *storage.Tx) error {
			_, err := tx.Exec(`DELETE FROM federation_cursor`)
			return err
		})
	}
	if err = errors.Join(err, db.Close(context.Background())); err != nil {
		s.t.Fatalf("populate %s: %v", roomID, err)
	}
	s.start()
}
