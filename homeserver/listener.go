package homeserver

import (
	"context"
	"errors"
	"fmt"
	stdlog "log"
	"net"
	"net/http"

	"github.com/sirupsen/logrus"

	"github.com/myelin-im/myelin/homeserver/config"
	"github.com/myelin-im/myelin/internal/httpapi"
)

// listener is one address that the server listens on.
type listener struct {
	name   string
	socket net.Listener
	tls    *certificate // nil: plain HTTP
	log    *logrus.Entry
	server *http.Server // set by serve
}

// listen opens an address. Connections wait until serve is called.
func listen(ctx context.Context, name string, cfg config.Listener, log *logrus.Logger) (*listener, error) {
	l := &listener{name: name, log: log.WithField("listener", name)}
	var err error
	if l.tls, err = loadCertificate(cfg, l.log); err != nil {
		return nil, err
	}
	if l.socket, err = new(net.ListenConfig).Listen(ctx, "tcp", cfg.Address); err != nil {
		return nil, adviseListener(name, fmt.Errorf("open the listener for %s: %w", name, err))
	}
	return l, nil
}

// address is where the listener really listens, as host:port.
func (l *listener) address() string { return l.socket.Addr().String() }

// url is how to reach the listener from this machine.
func (l *listener) url() string {
	scheme := "http://"
	if l.tls != nil {
		scheme = "https://"
	}
	host, port, err := net.SplitHostPort(l.address())
	if err != nil {
		return scheme + l.address()
	}
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		host = "localhost"
	}
	return scheme + net.JoinHostPort(host, port)
}

// serve answers requests with handler until stop or close; it sends how it ended to done, nil if it was asked to.
func (l *listener) serve(handler http.Handler, done chan<- error) {
	l.server = httpapi.NewServer(handler)
	l.server.ErrorLog = stdlog.New(lineLogger{l.log}, "", 0)
	l.log.WithField("address", l.address()).WithField("tls", l.tls != nil).Info("listening")
	go func() {
		var err error
		if l.tls != nil {
			l.server.TLSConfig = l.tls.tlsConfig()
			err = l.server.ServeTLS(l.socket, "", "")
		} else {
			err = l.server.Serve(l.socket)
		}
		if errors.Is(err, http.ErrServerClosed) {
			err = nil
		} else {
			err = fmt.Errorf("serve %s: %w", l.name, err)
		}
		done <- err
	}()
}

// abandon closes a listener that may never have served.
func (l *listener) abandon() {
	if l.server == nil {
		l.socket.Close()
	}
}

// drain takes no more requests and waits for those under way, or cuts them off when ctx ends.
func (l *listener) drain(ctx context.Context) {
	if err := l.server.Shutdown(ctx); err != nil {
		l.log.WithError(err).Warn("requests were still under way and are cut off")
		if err := l.server.Close(); err != nil {
			l.log.WithError(err).Warn("close listener")
		}
	}
}
