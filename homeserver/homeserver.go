package homeserver

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/sirupsen/logrus"

	"github.com/myelin-im/myelin/homeserver/config"
	"github.com/myelin-im/myelin/homeserver/signingkey"
	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/ratelimit"
	"github.com/myelin-im/myelin/storage"
)

const (
	// stopTimeout bounds a stop as a whole. Whoever stops servers kills those that take longer than five or ten seconds.
	stopTimeout = 4900 * time.Millisecond
	// drainTimeout is how much of it requests under way have. Features have 1.5 s after that for their last writes, and the
	// last flush of the database the rest, which mostly is nearly all of it.
	drainTimeout = 2500 * time.Millisecond
)

// Server is a homeserver. New makes it, Run serves.
type Server struct {
	cfg      *config.Config
	log      *logrus.Logger
	features *features
	router   *httpapi.Router
	control  *controlSocket // nil if it could not be opened

	client     *listener
	federation *listener // nil: the client listener answers other servers
	metrics    *listener // nil: off
	registry   *prometheus.Registry

	closers []func(context.Context) error // undo what New did, in the order in which it was done
}

// New opens the listeners, the data folder and the database, and puts the features together. Requests wait until
// Run. If it fails, everything is closed again. The folder for data is made if it is missing.
func New(ctx context.Context, cfg *config.Config, log *logrus.Logger) (*Server, error) {
	s := &Server{cfg: cfg, log: log, registry: prometheus.NewRegistry()}
	if len(cfg.Strangers) > 0 {
		log.WithField("variables", cfg.Strangers).Warn("these variables of the environment are no settings; are they mistyped?")
	}
	if err := s.open(ctx); err != nil {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
		defer cancel()
		return nil, errors.Join(err, s.close(closing))
	}
	return s, nil
}

func (s *Server) open(ctx context.Context) error {
	if err := s.listen(ctx); err != nil {
		return err
	}
	db, key, err := s.openData(ctx)
	if err != nil {
		return err
	}
	limits := ratelimit.New(s.cfg.RateLimits)
	var registerer prometheus.Registerer
	if s.metrics != nil { // otherwise nothing need be counted
		registerer = s.registry
	}
	if s.features, err = newFeatures(s.cfg, db, key, limits, s.log); err != nil {
		return err
	}
	s.router, err = httpapi.NewRouter(httpapi.Config{
		Authenticate:       s.features.authenticate,
		AuthenticateServer: s.features.authenticateServer,
		Limiter:            limits,
		Unavailable:        unavailable,
		Log:                s.log.WithField("part", "http"),
		Registerer:         registerer,
		TrustedProxies:     s.cfg.Client.TrustedProxies,
		MaxBody:            s.cfg.Limits.RequestBody,
	}, s.features.endpoints()...)
	return err
}

// unavailable tells whether a request failed because the database takes nothing at the moment. It has told the log.
func unavailable(err error) bool {
	return errors.Is(err, storage.ErrFull) || errors.Is(err, storage.ErrBroken)
}

// listen opens the configured listeners.
func (s *Server) listen(ctx context.Context) error {
	for _, l := range []struct {
		name string
		cfg  config.Listener
		into **listener
	}{
		{"client", s.cfg.Client.Listener, &s.client},
		{"federation", s.cfg.Federation.Listener, &s.federation},
		{"metrics", config.Listener{Address: s.cfg.Metrics.Address}, &s.metrics},
	} {
		if l.cfg.Address == "" {
			continue
		}
		opened, err := listen(ctx, l.name, l.cfg, s.log)
		if err != nil {
			return err
		}
		*l.into = opened
		s.closers = append(s.closers, func(context.Context) error { opened.abandon(); return nil })
	}
	return nil
}

// openData opens the data folder and the database.
func (s *Server) openData(ctx context.Context) (*storage.DB, signingkey.Key, error) {
	folder := s.cfg.Server.DataDir
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return nil, signingkey.Key{}, adviseFiles(s.cfg, fmt.Errorf("make the data folder: %w", err))
	}
	control, err := openControl(ctx, folder, s.log.WithField("part", "control"))
	if err != nil {
		return nil, signingkey.Key{}, adviseFiles(s.cfg, err)
	}
	if s.control = control; control != nil {
		s.closers = append(s.closers, func(context.Context) error { control.abandon(); return nil })
	}
	db, err := storage.Open(ctx, databaseOptions(s.cfg, s.log), schemas...)
	if err != nil {
		return nil, signingkey.Key{}, adviseDatabase(s.cfg, err)
	}
	s.closers = append(s.closers, db.Close)
	key, err := openKey(ctx, s.cfg, db)
	return db, key, err
}

// databaseOptions name the configured database.
func databaseOptions(cfg *config.Config, log *logrus.Logger) storage.Options {
	url := cfg.Database.URL
	if url == "" {
		url = filepath.Join(cfg.Server.DataDir, "myelin.db")
	}
	return storage.Options{URL: url, Exclusive: true, Readers: cfg.Database.Readers, Log: log}
}

// close undoes New, the latest step first, within ctx.
func (s *Server) close(ctx context.Context) error {
	var errs []error
	for _, undo := range slices.Backward(s.closers) {
		errs = append(errs, undo(ctx))
	}
	s.closers = nil
	return errors.Join(errs...)
}

// Run answers requests until ctx ends or a listener fails, then stops everything in order. It is called once. ready, if
// not nil, is called as soon as requests are answered.
func (s *Server) Run(ctx context.Context, ready func()) error {
	listeners := s.listeners()
	ended := make(chan error, len(listeners))
	for _, l := range listeners {
		l.serve(s.handler(l), ended)
	}
	working, stop := context.WithCancel(context.WithoutCancel(ctx)) // features outlive the listeners
	defer stop()
	background := s.features.start(working)
	if ready != nil {
		ready()
	}
	var failure error
	select {
	case <-ctx.Done():
	case failure = <-ended:
	case <-s.features.db.Lost():
		failure = errors.New("another server has taken the database over")
	}

	s.log.Info("stopping")
	stopping, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	s.features.release()
	s.drain(stopping, listeners)
	stop()
	<-background
	err := s.close(stopping)
	s.log.Info("stopped")
	return errors.Join(failure, err)
}

// listeners are all that are open, the control socket included.
func (s *Server) listeners() []*listener {
	all := []*listener{s.client, s.federation, s.metrics}
	if s.control != nil {
		all = append(all, s.control.listener)
	}
	return slices.DeleteFunc(all, func(l *listener) bool { return l == nil })
}

func (s *Server) handler(l *listener) http.Handler {
	switch {
	case l == s.metrics:
		return s.metricsHandler()
	case s.control != nil && l == s.control.listener:
		return s.features.controlHandler()
	}
	return s.router
}

// drain ends all listeners at the same time.
func (s *Server) drain(ctx context.Context, listeners []*listener) {
	ctx, cancel := context.WithTimeout(ctx, drainTimeout)
	defer cancel()
	drained := make(chan struct{}, len(listeners))
	for _, l := range listeners {
		go func() {
			l.drain(ctx)
			drained <- struct{}{}
		}()
	}
	for range listeners {
		<-drained
	}
}

// ClientURL is the base URL at which clients on this machine reach the server.
func (s *Server) ClientURL() string { return s.client.url() }

// FederationAddress is where the server listens for other servers, as host:port; without a listener of their own,
// that is the client listener.
func (s *Server) FederationAddress() string {
	if s.federation == nil {
		return s.client.address()
	}
	return s.federation.address()
}

// Greeting says where to connect and, on a server without an administrator, how to become it. It holds a secret then,
// so it is for the terminal and not for the log.
func (s *Server) Greeting(ctx context.Context) (string, error) {
	token, err := s.features.firstToken(ctx)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s is at %s\n", s.cfg.Server.Name, s.ClientURL())
	if s.federation != nil {
		fmt.Fprintf(&b, "other servers reach it at %s\n", s.federation.address())
	}
	if token != "" {
		fmt.Fprintf(&b, "\nThere is no administrator yet. The account that is registered with this token, in any Matrix\n"+
			"client, becomes one:\n\n    %s\n\n", token)
	}
	return b.String(), nil
}

// Routes is the table of all endpoints that a server has, sorted by path.
func Routes() []httpapi.Row {
	return httpapi.Table(new(features).endpoints())
}
