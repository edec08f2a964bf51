package directory

import (
	"context"
	"embed"
	"net/http"

	"github.com/myelin-im/myelin/federation/client"
	"github.com/myelin-im/myelin/internal/cache"
	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/ratelimit"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/storage"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Schema is the part of the database that belongs to the directory.
var Schema = storage.Schema{Feature: "directory", FS: migrations}

// API serves the endpoints of this package.
type API struct {
	db        *storage.DB
	rooms     *roomserver.Server
	summaries *cache.Cache[int64, *summary]
	children  *cache.Cache[int64, *childList]
	index     *index

	client *client.Client              // nil: other servers are not asked
	alias  ResolveAlias                // nil: nor are they asked for aliases
	trees  *cache.Cache[string, *tree] // what they said
}

const (
	summaryCacheBytes  = 16 << 20
	childrenCacheBytes = 16 << 20
)

// ResolveAlias finds the room of an alias of another server, and servers that are in it. It is implemented by federation.
// Errors are *mxerr.Error where they are for the client.
type ResolveAlias func(ctx context.Context, alias string) (roomID string, servers []string, err error)

// New makes the API. It subscribes to the log and must be called before the first write. The client asks other servers;
// nil: they are not asked, as for aliases if alias is nil.
func New(db *storage.DB, rooms *roomserver.Server, requests *client.Client, alias ResolveAlias) *API {
	a := &API{db: db, rooms: rooms, client: requests, alias: alias, trees: cache.New[string, *tree](maxTrees)}
	a.summaries = cache.New[int64, *summary](summaryCacheBytes)
	a.children = cache.New[int64, *childList](childrenCacheBytes)
	a.index = newIndex(a)
	db.Subscribe(a.index.committed)
	return a
}

// Endpoints is the table of routes.
func (a *API) Endpoints() []httpapi.Endpoint {
	const (
		v3       = "/_matrix/client/v3"
		v1       = "/_matrix/client/v1"
		unstable = "/_matrix/client/unstable"
		list     = v3 + "/directory/list"
	)
	return append(a.federationEndpoints(), []httpapi.Endpoint{
		httpapi.New(http.MethodGet, v3+"/publicRooms", httpapi.Optional, ratelimit.Search, a.getPublicRooms),
		httpapi.New(http.MethodPost, v3+"/publicRooms", httpapi.User, ratelimit.Search, a.searchPublicRooms),
		httpapi.New(http.MethodGet, list+"/room/{roomId}", httpapi.Anyone, ratelimit.Read, a.getVisibility),
		httpapi.New(http.MethodPut, list+"/room/{roomId}", httpapi.User, ratelimit.State, a.putVisibility).UnlessSuspended(),
		httpapi.New(http.MethodPut, list+"/appservice/{networkId}/{roomId}", httpapi.Appservice, ratelimit.State, a.putNetworkVisibility),

		httpapi.New(http.MethodGet, v1+"/rooms/{roomId}/hierarchy", httpapi.User, ratelimit.Search, a.hierarchy),
		httpapi.New(http.MethodGet, v1+"/room_summary/{roomIdOrAlias}", httpapi.Optional, ratelimit.Read, a.roomSummary),
		httpapi.New(http.MethodGet, v1+"/mutual_rooms", httpapi.User, ratelimit.Search, a.mutualRooms),

		// What clients called before it was specified (MSC3266, MSC2666).
		httpapi.New(http.MethodGet, unstable+"/im.nheko.summary/summary/{roomIdOrAlias}", httpapi.Optional, ratelimit.Read, a.unstableRoomSummary),
		httpapi.New(http.MethodGet, unstable+"/im.nheko.summary/rooms/{roomIdOrAlias}/summary", httpapi.Optional, ratelimit.Read, a.unstableRoomSummary),
		httpapi.New(http.MethodGet, unstable+"/uk.half-shot.msc2666/user/mutual_rooms", httpapi.User, ratelimit.Search, a.unstableMutualRooms),
	}...)
}
