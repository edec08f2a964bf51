package syncapi

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/myelin-im/myelin/accounts"
	"github.com/myelin-im/myelin/e2ee"
	"github.com/myelin-im/myelin/ephemeral"
	"github.com/myelin-im/myelin/internal/cache"
	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/ratelimit"
	"github.com/myelin-im/myelin/push"
	"github.com/myelin-im/myelin/push/unread"
	"github.com/myelin-im/myelin/relations"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/storage"
	"github.com/myelin-im/myelin/syncapi/filter"
)

// Deps are the parts of the server that this package reads.
type Deps struct {
	DB        *storage.DB
	Rooms     *roomserver.Server
	Ephemeral *ephemeral.API
	Push      *push.API
	Unread    *unread.Counts
	Accounts  *accounts.API
	E2EE      *e2ee.API
	// History gets older events from other servers. Nil: there are none.
	History History
	// Join joins a caller to a room, with the checks of POST /join. Nil: nobody is joined.
	Join func(ctx context.Context, by *httpapi.Caller, roomID string) error
	Log  *logrus.Entry
}

// History gets what is missing of a room's history. It is implemented by federation.
type History interface {
	// Fill gets what is missing among the last limit events before a place, as far as it can be had.
	Fill(ctx context.Context, room *roomserver.Room, before roomserver.HistoryToken, limit int) error
	// FillAfter is Fill for the first limit events after a place.
	FillAfter(ctx context.Context, room *roomserver.Room, after roomserver.HistoryToken, limit int) error
	// FillNear gets the event closest to a time, if others have one that is closer than have (or nil).
	FillNear(ctx context.Context, room *roomserver.Room, ts int64, forward bool, have *roomserver.Event) error
	// Relationships asks for a part of a thread; see relations.Ask.
	Relationships(ctx context.Context, room *roomserver.Room, want *relations.Walk, near *roomserver.Event) ([]relations.Found, error)
}

// API serves the endpoints of this package.
type API struct {
	db        *storage.DB
	rooms     *roomserver.Server
	ephemeral *ephemeral.API
	push      *push.API
	unread    *unread.Counts
	accounts  *accounts.API
	e2ee      *e2ee.API
	history   History
	explorer  *relations.Explorer
	join      func(ctx context.Context, by *httpapi.Caller, roomID string) error

	tracker *tracker
	lazy    *lazyCache
	filters *cache.Cache[string, *filter.Filter]
	now     func() time.Time

	// released is closed when the server is about to stop.
	released chan struct{}
	release  sync.Once

	sliding  sliding
	keyWaker keyWaker
}

// maxFilters bounds the compiled filters kept in memory.
const maxFilters = 2000

// New makes the API. It must be made before the first write after start, since it follows the log from there.
func New(d Deps) (*API, error) {
	a := &API{
		db: d.DB, rooms: d.Rooms, ephemeral: d.Ephemeral, push: d.Push, unread: d.Unread, accounts: d.Accounts, e2ee: d.E2EE, history: d.History, join: d.Join,
		tracker: newTracker(d.Rooms, d.DB.Head()),
		lazy:    newLazyCache(), filters: cache.New[string, *filter.Filter](maxFilters), now: time.Now,
		released: make(chan struct{}),
	}
	var ask relations.Ask
	if d.History != nil {
		ask = d.History.Relationships
	}
	a.explorer = relations.NewExplorer(d.Rooms, ask)
	d.DB.Subscribe(a.tracker.committed)
	d.DB.Watch(a.tracker.published)
	d.DB.Watch(a.deviceKeysPublished)
	d.Ephemeral.Listen(ephemeral.Listener{Typing: a.tracker.typing, Presence: a.tracker.presence})
	if err := a.setUpSliding(d.Log); err != nil {
		return nil, fmt.Errorf("set up sliding sync: %w", err)
	}
	return a, nil
}

// Release answers all waiting requests at once, and later ones without waiting, because the server is about to stop.
func (a *API) Release() { a.release.Do(func() { close(a.released) }) }

const (
	v3 = "/_matrix/client/v3"
	v1 = "/_matrix/client/v1"

	anyUser = httpapi.User | httpapi.Guest
)

// Endpoints is the table of routes.
func (a *API) Endpoints() []httpapi.Endpoint {
	get := http.MethodGet
	return []httpapi.Endpoint{
		httpapi.New(get, v3+"/sync", anyUser, ratelimit.Sync, a.sync),
		httpapi.New(http.MethodPost, "/_matrix/client/v4/sync", anyUser, ratelimit.Sync, a.slidingV4),
		httpapi.New(http.MethodPost, "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync", anyUser, ratelimit.Sync, a.slidingDraft),
		httpapi.New(get, v3+"/rooms/{roomId}/messages", anyUser, ratelimit.Read, a.messages),
		httpapi.New(get, v3+"/rooms/{roomId}/context/{eventId}", anyUser, ratelimit.Read, a.context),
		httpapi.New(get, v3+"/rooms/{roomId}/event/{eventId}", anyUser, ratelimit.Read, a.event),
		httpapi.New(get, v3+"/rooms/{roomId}/members", anyUser, ratelimit.Read, a.members),
		httpapi.New(get, v3+"/rooms/{roomId}/joined_members", httpapi.User, ratelimit.Read, a.joinedMembers),
		httpapi.New(get, v3+"/rooms/{roomId}/state", anyUser, ratelimit.Read, a.state),
		httpapi.New(get, v3+"/rooms/{roomId}/state/{eventType}/{stateKey}", anyUser, ratelimit.Read, a.stateEvent),
		httpapi.New(get, v3+"/rooms/{roomId}/initialSync", anyUser, ratelimit.Read, a.roomInitialSync),
		httpapi.New(get, v1+"/rooms/{roomId}/relations/{eventId}", httpapi.User, ratelimit.Read, a.relations),
		httpapi.New(get, v1+"/rooms/{roomId}/relations/{eventId}/{relType}", httpapi.User, ratelimit.Read, a.relationsOfType),
		httpapi.New(get, v1+"/rooms/{roomId}/relations/{eventId}/{relType}/{eventType}", httpapi.User, ratelimit.Read, a.relationsOfTypes),
		httpapi.New(http.MethodPost, "/_matrix/client/unstable/event_relationships", httpapi.User, ratelimit.Search, a.relationships),
		httpapi.New(get, v1+"/rooms/{roomId}/threads", httpapi.User, ratelimit.Read, a.threads),
		httpapi.New(get, v1+"/rooms/{roomId}/timestamp_to_event", httpapi.User, ratelimit.Read, a.timestampToEvent),
		httpapi.New(get, "/_matrix/client/unstable/io.element.msc4308/thread_subscriptions", httpapi.User, ratelimit.Read, a.listSubscriptions),
		httpapi.New(get, v3+"/initialSync", httpapi.User, ratelimit.Read, a.initialSync),
		httpapi.New(get, v3+"/events", anyUser, ratelimit.Sync, a.events),
		httpapi.New(get, v3+"/events/{eventId}", httpapi.User, ratelimit.Read, a.oneEvent),
		httpapi.New(get, v3+"/joined_rooms", httpapi.User, ratelimit.Read, a.joinedRooms),
		httpapi.New(get, v3+"/keys/changes", httpapi.User, ratelimit.Keys, a.keyChanges),
	}
}

// rawJSON is an answer that was built as bytes.
type rawJSON = httpapi.Built
