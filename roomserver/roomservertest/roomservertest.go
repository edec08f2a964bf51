// Package roomservertest makes what tests of the packages above roomserver stand on: rooms, and a router that believes
// whoever says who they are.
package roomservertest

import (
	"context"
	"crypto/ed25519"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/sirupsen/logrus"

	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/storage"
)

// Log is a log that nobody reads.
func Log() *logrus.Entry {
	log := logrus.New()
	log.SetOutput(io.Discard)
	return logrus.NewEntry(log)
}

// New makes the rooms of the server "hs" on a database that was opened with roomserver.Schema. A test that needs other
// options changes them.
func New(t testing.TB, db *storage.DB, change ...func(*roomserver.Options)) *roomserver.Server {
	t.Helper()
	options := roomserver.Options{ServerName: "hs", KeyID: "ed25519:1", Key: ed25519.NewKeyFromSeed(make([]byte, 32)), Log: Log()}
	for _, f := range change {
		f(&options)
	}
	s, err := roomserver.New(db, options)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Router serves endpoints. Users show their user ID as token, followed by a blank and the device if it matters; any other
// token is unknown.
func Router(t testing.TB, endpoints ...[]httpapi.Endpoint) http.Handler {
	t.Helper()
	router, err := httpapi.NewRouter(httpapi.Config{Log: Log(), Authenticate: caller}, slices.Concat(endpoints...)...)
	if err != nil {
		t.Fatal(err)
	}
	return router
}

func caller(_ context.Context, token string, _ *http.Request) (*httpapi.Caller, error) {
	user, device, _ := strings.Cut(token, " ")
	if !strings.HasPrefix(user, "@") {
		return nil, mxerr.UnknownToken(false)
	}
	return &httpapi.Caller{UserID: user, DeviceID: device}, nil
}
