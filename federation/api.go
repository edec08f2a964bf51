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
	"sync"

	"github.com/sirupsen/logrus"

	"github.com/myelin-im/myelin/federation/client"
	"github.com/myelin-im/myelin/federation/keys"
	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/storage"
)

// EDUHandler takes an EDU of its type that a server sent. Whether the server may speak for those whom the content names,
// is for the handler to check. An error is logged; the sender is not told.
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
	// EDUs are the handlers of EDUs by type.
	EDUs map[string]EDUHandler
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
	edus   map[string]EDUHandler
	log    *logrus.Entry
}

// New makes the API. It must be called before the first write.
func New(d Deps) (*API, error) {
	return &API{
		name: d.Name, policy: d.Policy, db: d.DB, rooms: d.Rooms, client: d.Client, keys: d.Keys, edus: d.EDUs, log: d.Log,
	}, nil
}

// Endpoints lists the endpoints of this package.
func (a *API) Endpoints() []httpapi.Endpoint {
	var all []httpapi.Endpoint
	for _, some := range [][]httpapi.Endpoint{a.keyEndpoints()} {
		all = append(all, some...)
	}
	return all
}

// Run does what goes on in the background until ctx ends.
func (a *API) Run(ctx context.Context) {
	var group sync.WaitGroup
	group.Go(func() { <-ctx.Done(); a.client.Close() })
	group.Wait()
}

// reached notes that a server is there, since it has just made a request: what failed before is worth another try.
func (a *API) reached(origin string) {
	a.keys.Reached(origin)
}
