package clientapi

import (
	"context"
	"net/http"

	"github.com/sirupsen/logrus"

	"github.com/myelin-im/myelin/appservice"
	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/internal/ratelimit"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/roomserver/pdu"
	"github.com/myelin-im/myelin/storage"
)

// Profiles tells what membership events say of a user. It is implemented by accounts.
type Profiles interface {
	// MemberProfile returns the user's display name and avatar, "" where unset or unknown.
	MemberProfile(ctx context.Context, userID string) (displayname, avatarURL string, err error)
}

// API serves the endpoints of this package.
type API struct {
	db       *storage.DB
	rooms    *roomserver.Server
	profiles Profiles
	options  Options
	log      *logrus.Entry
	guests   *guestRemover
}

// Options are what an operator decides about rooms, and what this package asks of its neighbours.
type Options struct {
	// DefaultVersion is the version of rooms whose creator asks for none; empty takes pdu.DefaultVersion.
	DefaultVersion string
	// Remote reaches other servers. Nil: there are none.
	Remote Remote
	// NoticeRoom tells whether a room is the one in which the server talks to a user. Nil: there are none.
	NoticeRoom func(ctx context.Context, userID, roomID string) (bool, error)
	// Appservices keep aliases for themselves. Nil: there are none.
	Appservices *appservice.Set
	// Attach attaches media to an event that is being sent (MSC3911). Nil: it cannot be.
	Attach func(ctx context.Context, userID string, uris []string) (func(u *storage.Unit, eventID string), error)
	// Delay schedules an event that is to be sent after so many milliseconds (MSC4140), and returns its delay id.
	Delay func(ctx context.Context, by *httpapi.Caller, roomID string, d roomserver.Draft, delayMS int64) (string, error)
}

// New makes the API on a roomserver. It must be called before the first write.
func New(db *storage.DB, rooms *roomserver.Server, profiles Profiles, options Options, log *logrus.Entry) *API {
	if options.DefaultVersion == "" {
		options.DefaultVersion = pdu.DefaultVersion
	}
	if options.NoticeRoom == nil {
		options.NoticeRoom = func(context.Context, string, string) (bool, error) { return false, nil }
	}
	a := &API{db: db, rooms: rooms, profiles: profiles, options: options, log: log}
	a.guests = newGuestRemover(a)
	return a
}

const (
	v3 = "/_matrix/client/v3"

	members = httpapi.User | httpapi.Guest
)

// Endpoints is the table of routes.
func (a *API) Endpoints() []httpapi.Endpoint {
	return []httpapi.Endpoint{
		httpapi.New(http.MethodPost, v3+"/createRoom", httpapi.User, ratelimit.Create, a.createRoom).UnlessSuspended(),
		httpapi.New(http.MethodPost, v3+"/rooms/{roomId}/upgrade", httpapi.User, ratelimit.Create, a.upgrade).UnlessSuspended(),

		httpapi.New(http.MethodPut, v3+"/rooms/{roomId}/send/{eventType}/{txnId}", members, ratelimit.Message, a.send),
		httpapi.New(http.MethodPut, v3+"/rooms/{roomId}/state/{eventType}/{stateKey}", members, ratelimit.State, a.putState),
		httpapi.New(http.MethodPut, v3+"/rooms/{roomId}/redact/{eventId}/{txnId}", httpapi.User, ratelimit.Message, a.redact),

		httpapi.New(http.MethodPost, v3+"/join/{roomIdOrAlias}", members, ratelimit.Join, a.joinByIDOrAlias),
		httpapi.New(http.MethodPost, v3+"/rooms/{roomId}/join", members, ratelimit.Join, a.join),
		httpapi.New(http.MethodPost, v3+"/knock/{roomIdOrAlias}", httpapi.User, ratelimit.Join, a.knock).UnlessSuspended(),
		httpapi.New(http.MethodPost, v3+"/rooms/{roomId}/leave", members, ratelimit.Join, a.leave),
		httpapi.New(http.MethodPost, v3+"/rooms/{roomId}/forget", httpapi.User, ratelimit.Join, a.forget),
		httpapi.New(http.MethodPost, v3+"/rooms/{roomId}/invite", httpapi.User, ratelimit.Invite, a.invite).UnlessSuspended(),
		httpapi.New(http.MethodPost, v3+"/rooms/{roomId}/kick", httpapi.User, ratelimit.State, a.kick).UnlessSuspended(),
		httpapi.New(http.MethodPost, v3+"/rooms/{roomId}/ban", httpapi.User, ratelimit.State, a.ban).UnlessSuspended(),
		httpapi.New(http.MethodPost, v3+"/rooms/{roomId}/unban", httpapi.User, ratelimit.State, a.unban).UnlessSuspended(),

		httpapi.New(http.MethodGet, v3+"/directory/room/{roomAlias}", httpapi.Anyone, ratelimit.Read, a.getAlias),
		httpapi.New(http.MethodPut, v3+"/directory/room/{roomAlias}", httpapi.User, ratelimit.State, a.putAlias).UnlessSuspended(),
		httpapi.New(http.MethodDelete, v3+"/directory/room/{roomAlias}", httpapi.User, ratelimit.State, a.deleteAlias).UnlessSuspended(),
		httpapi.New(http.MethodGet, v3+"/rooms/{roomId}/aliases", httpapi.User, ratelimit.Read, a.listAliases),
	}
}

// memberContent is what a membership event says of a user beside the membership.
func (a *API) memberContent(ctx context.Context, user string) (map[string]any, error) {
	name, avatar, err := a.profiles.MemberProfile(ctx, user)
	if err != nil {
		return nil, err
	}
	content := map[string]any{}
	if name != "" {
		content["displayname"] = name
	}
	if avatar != "" {
		content["avatar_url"] = avatar
	}
	return content, nil
}

// notLocal answers requests about rooms and aliases of other servers.
func notLocal(what string) error {
	return mxerr.NotFound("This server does not know " + what)
}
