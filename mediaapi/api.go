package mediaapi

import (
	"context"
	"embed"
	"fmt"
	"net/http"
	"path/filepath"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/tus/tusd/v2/pkg/handler"

	"github.com/myelin-im/myelin/federation/client"
	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/ratelimit"
	"github.com/myelin-im/myelin/mediaapi/blob"
	"github.com/myelin-im/myelin/mediaapi/outbound"
	"github.com/myelin-im/myelin/storage"
)

//go:embed migrations
var migrations embed.FS

// Schema has the tables of the content repository.
var Schema = storage.Schema{Feature: "media", FS: migrations}

// Config is what the operator decides.
type Config struct {
	// ServerName is the server in the URIs of local media.
	ServerName string
	// Folder is where temporary files are and, without a bucket, the media.
	Folder string
	// MaxUpload bounds one upload, MaxRemote what is fetched from other servers, in bytes.
	MaxUpload, MaxRemote int64
	// Frozen keeps what is stored from now on from the unauthenticated endpoints.
	Frozen bool
	// MaxPending is how many URIs a user may have created without having uploaded to them, for PendingFor each.
	MaxPending int
	PendingFor time.Duration
	// Quota bounds the bytes that one user may have stored; 0: no bound.
	Quota int64
	// Thumbnails is about thumbnails.
	Thumbnails Thumbnails
	// Previews is about previews of URLs.
	Previews Previews
	// Retention is how long media is kept.
	Retention Retention
	// ScanCommand is a program that looks at new files; empty: none.
	ScanCommand string
	// Linking lets users restrict media to those who see the event that it is attached to (MSC3911).
	Linking bool
	// AllowPrivate lets redirects of other servers lead to loopback and private addresses.
	AllowPrivate bool
}

// Servers makes requests to other servers.
type Servers interface {
	// Stream is client.Client.Stream.
	Stream(ctx context.Context, r client.Request) (*http.Response, error)
}

// Deps are the other parts of the server that the content repository stands on.
type Deps struct {
	// DB must have been opened with Schema.
	DB *storage.DB
	// Store keeps the blobs; nil: the folder.
	Store blob.Store
	// Servers fetches remote media; nil: there is none.
	Servers Servers
	// Events goes through the events of a room, or of all rooms, and the states of rooms.
	Events func(ctx context.Context, roomID string, fn func(event []byte, state bool) error) error
	// Sees tells whether a user or a server, of which one is given, sees an event.
	Sees func(ctx context.Context, user, server, eventID string) (bool, error)
	// Log gets what operators should know.
	Log *logrus.Entry
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// API is the content repository of one server. It is safe for concurrent use.
type API struct {
	Config
	db      *storage.DB
	store   blob.Store
	area    *blob.Area
	servers Servers
	events  func(ctx context.Context, roomID string, fn func(event []byte, state bool) error) error
	sees    func(ctx context.Context, user, server, eventID string) (bool, error)
	log     *logrus.Entry
	now     func() time.Time

	life    context.Context // work that several requests wait for ends with it and not with one of them
	end     context.CancelFunc
	waiting arrivals
	touched touches

	workers slots // that make thumbnails
	making  flights[variant, *small]
	early   chan *record

	web      *outbound.Client // for redirects of other servers
	fetchers slots
	fetching flights[uri, *record]
	failures failures
	lives    lives
	pace     pace // that origins are held to

	tus     *handler.UnroutedHandler
	partial *partials

	pages      *outbound.Client // for previews
	previewers slots
	previewing flights[string, *previewAnswer]
	sites      sites
}

// New opens the store and cleans up what a crash has left.
func New(cfg Config, d Deps) (*API, error) {
	a := &API{Config: cfg, db: d.DB, store: d.Store, servers: d.Servers, events: d.Events, sees: d.Sees, log: d.Log, now: d.Now, pace: slowest}
	a.life, a.end = context.WithCancel(context.Background())
	if a.now == nil {
		a.now = time.Now
	}
	a.workers, a.early = newSlots(max(cfg.Thumbnails.Workers, 1), thumbnailQueue), make(chan *record, thumbnailQueue)
	a.fetchers = newSlots(fetches, fetchQueue)
	a.web = outbound.New(outbound.Config{AllowPrivate: cfg.AllowPrivate, UserAgent: robot})
	p := cfg.Previews
	a.pages = outbound.New(outbound.Config{AllowPrivate: p.AllowPrivate, Deny: p.Deny, Allow: p.Allow, UserAgent: userAgent})
	a.previewers = newSlots(previewing, previewQueue)
	var err error
	if a.area, err = blob.NewArea(filepath.Join(cfg.Folder, "tmp")); err != nil {
		return nil, err
	}
	if a.store == nil {
		if a.store, err = blob.NewDisk(filepath.Join(cfg.Folder, "blobs")); err != nil {
			return nil, err
		}
	}
	if a.tus, err = a.newTus(); err != nil {
		return nil, err
	}
	if err := a.area.Recover(a.forgetUnlessKept); err != nil {
		return nil, fmt.Errorf("clean up after the last run: %w", err)
	}
	return a, nil
}

// Run does what is done in the background until ctx ends.
func (a *API) Run(ctx context.Context) {
	var group sync.WaitGroup
	group.Go(func() { a.writeTouches(ctx) })
	group.Go(func() { a.workEarly(ctx) })
	group.Go(func() { a.cleanUpRegularly(ctx) })
	<-ctx.Done()
	a.end()
	a.web.Close()
	a.pages.Close()
	group.Wait()
}

// ms is the time in milliseconds.
func (a *API) ms() int64 { return a.now().UnixMilli() }

// Endpoints are all endpoints of the content repository; a may be nil if they are not to be served.
func (a *API) Endpoints() []httpapi.Endpoint {
	const (
		v1      = "/_matrix/client/v1/media"
		legacy  = "/_matrix/media/v3"
		servers = "/_matrix/federation/v1/media"
		anyone  = httpapi.Anyone
		user    = httpapi.User
		all     = httpapi.User | httpapi.Guest
		class   = ratelimit.Media
	)
	limit := int64(1)
	if a != nil { // the table of routes is printed without one
		limit = a.MaxUpload
	}
	upload := func(e httpapi.Endpoint) httpapi.Endpoint { return e.WithMaxBody(limit).UnlessSuspended() }
	return append(a.adminEndpoints(),
		httpapi.New("GET", v1+"/config", user, ratelimit.Read, a.config),
		httpapi.New("GET", legacy+"/config", user, ratelimit.Read, a.config),
		upload(httpapi.NewRaw("POST", legacy+"/upload", user, class, a.upload)),
		upload(httpapi.NewRaw("PUT", legacy+"/upload/{serverName}/{mediaId}", user, class, a.uploadTo)),
		upload(httpapi.NewRaw("POST", linked+"/upload", user, class, a.uploadRestricted)),
		httpapi.New("POST", linked+"/copy/{serverName}/{mediaId}", user, class, a.copyMedia).UnlessSuspended(),
		upload(httpapi.NewRaw("POST", resumable+"/{serverName}/{mediaId}", user, class, a.resume)),
		upload(httpapi.NewRaw("PATCH", resumable+"/{serverName}/{mediaId}", user, class, a.resume)),
		httpapi.NewRaw("GET", resumable+"/{serverName}/{mediaId}", user, class, a.resume),
		httpapi.NewRaw("DELETE", resumable+"/{serverName}/{mediaId}", user, class, a.resume),
		httpapi.New("GET", v1+"/preview_url", user, class, a.preview),
		httpapi.New("GET", legacy+"/preview_url", user, class, a.preview),
		httpapi.New("POST", "/_matrix/media/v1/create", user, class, a.create).UnlessSuspended(),
		httpapi.NewRaw("GET", v1+"/download/{serverName}/{mediaId}", all, class, a.download),
		httpapi.NewRaw("GET", v1+"/download/{serverName}/{mediaId}/{fileName}", all, class, a.download),
		httpapi.NewRaw("GET", legacy+"/download/{serverName}/{mediaId}", anyone, class, a.downloadOpen),
		httpapi.NewRaw("GET", legacy+"/download/{serverName}/{mediaId}/{fileName}", anyone, class, a.downloadOpen),
		httpapi.NewRaw("GET", v1+"/thumbnail/{serverName}/{mediaId}", all, class, a.thumbnail),
		httpapi.NewRaw("GET", legacy+"/thumbnail/{serverName}/{mediaId}", anyone, class, a.thumbnailOpen),
		httpapi.NewRaw("GET", servers+"/download/{mediaId}", httpapi.Server, ratelimit.Federation, a.downloadForServer),
		httpapi.NewRaw("GET", servers+"/thumbnail/{mediaId}", httpapi.Server, ratelimit.Federation, a.thumbnailForServer),
	)
}

type configResponse struct {
	UploadSize int64 `json:"m.upload.size"`
}

// config: client-server API v1.19, GET /media/config.
func (a *API) config(context.Context, *httpapi.Caller, *httpapi.Empty) (*configResponse, error) {
	return &configResponse{a.MaxUpload}, nil
}
