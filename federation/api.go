// Package federation is this server among others: who may talk to it, what it answers them and what it asks them.
//
// The packages below it have the parts that stand alone: client makes requests, keys knows the signing keys of servers,
// queue sends what happens here to those whom it concerns. This package declares the endpoints.
//
// spec: server-server-api v1.19
package federation

import (
	"context"
	"encoding/json"
	"maps"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/myelin-im/myelin/ephemeral"
	"github.com/myelin-im/myelin/federation/client"
	"github.com/myelin-im/myelin/federation/inbox"
	"github.com/myelin-im/myelin/federation/keys"
	"github.com/myelin-im/myelin/federation/queue"
	"github.com/myelin-im/myelin/internal/cache"
	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/storage"
)

// EDUHandler takes an EDU of its type that a server sent. Whether the server may speak for those whom the content names is
// for the handler to check. An error is logged; the sender is not told.
type EDUHandler func(ctx context.Context, origin string, content json.RawMessage) error

// Deps are the other parts of the server that federation stands on.
type Deps struct {
	// Name is our server name, Policy whom we talk to.
	Name   string
	Policy *Policy
	// DB must have been opened with the schemas of this package and those below it.
	DB *storage.DB
	// Rooms is the roomserver.
	Rooms *roomserver.Server
	// Client asks other servers, Keys knows their keys.
	Client *client.Client
	Keys   *keys.Ring
	// Source keeps EDUs for other servers that must arrive; nil if there is none.
	Source queue.Source
	// Ephemeral has typing, receipts and presence.
	Ephemeral *ephemeral.API
	// EDUs are the handlers of EDUs by type, other than those for what Ephemeral has.
	EDUs map[string]EDUHandler
	// MayInvite refuses invites of a local user by somebody with a *mxerr.Error; nil lets all in.
	MayInvite func(ctx context.Context, user, by string) error
	// Whole hears of rooms that were entered without most members, once these are known. It is called again if it fails or the
	// server stops meanwhile. Nil: nobody.
	Whole func(ctx context.Context, c roomserver.Completion) error
	// Log gets what operators should know.
	Log *logrus.Entry
}

// API is the federation of one server. It is safe for concurrent use.
type API struct {
	name   string
	policy *Policy
	db     *storage.DB
	rooms  *roomserver.Server
	client *client.Client
	keys   *keys.Ring
	queue  *queue.Queue

	profiles  *cache.Cache[string, knownProfile] // of other servers' users
	ephemeral *ephemeral.API
	news      *ephemeralNews
	edus      map[string]EDUHandler
	log       *logrus.Entry

	mayInvite func(ctx context.Context, user, by string) error
	whole     func(ctx context.Context, c roomserver.Completion) error

	inbox    *inbox.Inbox
	lanes    *inbox.Lanes
	entering entries
	// entrances are the last rooms that users entered with the help of others.
	entrances *cache.Cache[string, entrance]

	completions completions

	rests   *cache.Cache[gapKey, time.Time] // when filling it came to nothing
	filling [64]sync.Mutex                  // of the rooms whose number has this remainder

	// background is for work that goes on after the answer to a request, until stop.
	background context.Context
	stop       context.CancelFunc
}

// New makes the API. It must be called before the first write.
func New(d Deps) (*API, error) {
	a := &API{
		name: d.Name, policy: d.Policy, db: d.DB, rooms: d.Rooms, client: d.Client, keys: d.Keys, log: d.Log,
		queue: queue.New(queue.Config{
			Name: d.Name, DB: d.DB, Rooms: d.Rooms, Client: d.Client, Source: d.Source, Allowed: d.Policy.Allows, Log: d.Log,
		}),
		mayInvite: d.MayInvite, whole: d.Whole, inbox: inbox.New(d.DB, nil), lanes: inbox.NewLanes(runningLanes),
	}
	if a.mayInvite == nil {
		a.mayInvite = func(context.Context, string, string) error { return nil }
	}
	a.ephemeral, a.news, a.edus = d.Ephemeral, newEphemeralNews(), a.ephemeralHandlers()
	maps.Copy(a.edus, d.EDUs)
	a.news.listen(a)
	a.profiles = cache.New[string, knownProfile](maxProfiles)
	a.db.Subscribe(a.forgetProfiles)
	a.entrances = cache.New[string, entrance](maxEntrances)
	a.rests = cache.New[gapKey, time.Time](maxRests)
	a.background, a.stop = context.WithCancel(context.Background())
	return a, nil
}

// Endpoints lists the endpoints of this package.
func (a *API) Endpoints() []httpapi.Endpoint {
	var all []httpapi.Endpoint
	for _, some := range [][]httpapi.Endpoint{
		a.keyEndpoints(), a.queryEndpoints(), a.transactionEndpoints(), a.handshakeEndpoints(), a.inviteEndpoints(), a.thirdPartyEndpoints(), a.readingEndpoints(),
	} {
		all = append(all, some...)
	}
	return all
}

// Run does what goes on in the background until ctx ends.
func (a *API) Run(ctx context.Context) {
	var group sync.WaitGroup
	group.Go(func() { <-ctx.Done(); a.client.Close() })
	group.Go(func() { a.queue.Run(ctx) })
	group.Go(func() { a.tellEphemeral(ctx) })
	group.Go(func() { a.runInbound(ctx) })
	group.Go(func() { a.runPruning(ctx) })
	group.Go(func() { a.runCompletions(ctx) })
	group.Wait()
}

// reached notes that a server is there, since it has just made a request: what failed before is worth another try.
func (a *API) reached(origin string) {
	a.keys.Reached(origin)
	a.queue.Reached(origin)
	a.client.Reached(origin)
}
