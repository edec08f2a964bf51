package search

import (
	"context"
	"embed"
	"net/http"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/ratelimit"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/storage"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Schema is the part of the database that belongs to search.
var Schema = storage.Schema{Feature: "search", FS: migrations}

// API serves the endpoints of this package and keeps the index.
type API struct {
	db      *storage.DB
	rooms   *roomserver.Server
	ignored func(ctx context.Context, user string) (map[string]bool, error)
	index   *index
	now     func() time.Time
}

// Deps are the parts of the server that this package uses.
type Deps struct {
	DB    *storage.DB
	Rooms *roomserver.Server
	// Ignored returns whom a user ignores.
	Ignored func(ctx context.Context, user string) (map[string]bool, error)
	// Log receives what goes wrong in the background.
	Log *logrus.Entry
}

// New makes the API. It subscribes to the log and to what comes into the past of rooms, and must be called before the first write.
func New(d Deps) *API {
	a := &API{db: d.DB, rooms: d.Rooms, ignored: d.Ignored, now: time.Now}
	a.index = newIndex(d.DB, d.Rooms, d.Log)
	return a
}

// Run keeps the index up to date until ctx ends.
func (a *API) Run(ctx context.Context) { a.index.run(ctx) }

// Endpoints is the table of routes.
func (a *API) Endpoints() []httpapi.Endpoint {
	const v3 = "/_matrix/client/v3"
	return []httpapi.Endpoint{
		httpapi.New(http.MethodPost, v3+"/search", httpapi.User, ratelimit.Search, a.search),
		httpapi.New(http.MethodPost, v3+"/user_directory/search", httpapi.User, ratelimit.Search, a.searchUsers),
	}
}
