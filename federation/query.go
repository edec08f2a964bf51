package federation

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/myelin-im/myelin/accounts"
	"github.com/myelin-im/myelin/federation/client"
	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/internal/ratelimit"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/roomserver/pdu"
	"github.com/myelin-im/myelin/storage"
)

// queryEndpoints answer what other servers ask about users and aliases of this one.
//
// spec: server-server-api v1.19 "Querying for information", "Server implementation"
func (a *API) queryEndpoints() []httpapi.Endpoint {
	return []httpapi.Endpoint{
		httpapi.New("GET", v1+"/version", httpapi.Anyone, ratelimit.None, a.version),
		httpapi.New("GET", v1+"/query/profile", httpapi.Server, ratelimit.Federation, a.queryProfile),
		httpapi.New("GET", v1+"/query/directory", httpapi.Server, ratelimit.Federation, a.queryDirectory),
		httpapi.New("GET", v1+"/query/{queryType}", httpapi.Server, ratelimit.Federation, a.queryOther),
	}
}

type versionAnswer struct {
	Server struct {
		Name    string `json:"name"`
		Version string `json:"version"`
	} `json:"server"`
}

func (a *API) version(context.Context, *httpapi.Caller, *httpapi.Empty) (*versionAnswer, error) {
	out := new(versionAnswer)
	out.Server.Name, out.Server.Version = "Myelin", "unknown"
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		out.Server.Version = info.Main.Version
	}
	return out, nil
}

type profileQuery struct {
	UserID string `query:"user_id" required:"true"`
	Field  string `query:"field"`
}

func (a *API) queryProfile(ctx context.Context, _ *httpapi.Caller, in *profileQuery) (*accounts.Profile, error) {
	if !pdu.ValidUserID(in.UserID) || !a.rooms.IsLocal(in.UserID) {
		return nil, mxerr.InvalidParam("That is no user of this server")
	}
	var profile *accounts.Profile
	err := a.db.Read(ctx, func(tx *storage.Tx) (err error) {
		profile, err = accounts.ReadProfile(tx, in.UserID)
		return err
	})
	if err != nil {
		return nil, err
	}
	if profile == nil {
		return nil, mxerr.NotFound("There is no such user")
	}
	if in.Field != "" {
		one := map[string]json.RawMessage{}
		if value, ok := profile.Fields[in.Field]; ok {
			one[in.Field] = value
		}
		profile = &accounts.Profile{Fields: one}
	}
	return profile, nil
}

type directoryQuery struct {
	Alias string `query:"room_alias" required:"true"`
}

type directoryAnswer struct {
	RoomID  string   `json:"room_id"`
	Servers []string `json:"servers"`
}

// maxToldServers bounds the servers that are named as being in a room.
const maxToldServers = 200

func (a *API) queryDirectory(ctx context.Context, _ *httpapi.Caller, in *directoryQuery) (*directoryAnswer, error) {
	alias, ok, err := a.rooms.LookupAlias(ctx, in.Alias)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, mxerr.NotFound("There is no such room alias")
	}
	out := &directoryAnswer{RoomID: alias.RoomID, Servers: []string{a.name}}
	room, err := a.rooms.Room(ctx, alias.RoomID)
	if errors.Is(err, roomserver.ErrUnknownRoom) {
		return out, nil
	}
	if err != nil {
		return nil, err
	}
	servers := room.Servers()
	slices.Sort(servers)
	for _, name := range servers {
		if name != a.name && len(out.Servers) < maxToldServers {
			out.Servers = append(out.Servers, name)
		}
	}
	return out, nil
}

type otherQuery struct {
	Type string `path:"queryType"`
}

func (a *API) queryOther(context.Context, *httpapi.Caller, *otherQuery) (*httpapi.Empty, error) {
	return nil, mxerr.Unrecognized(http.StatusNotFound)
}

const (
	// maxProfile bounds the profile that another server tells, in bytes.
	maxProfile = 256 << 10
	// profileFresh is how long a profile is remembered, maxProfiles how many are.
	profileFresh = time.Minute
	maxProfiles  = 5000
	// profileTimeout is how long a server may take to tell one.
	profileTimeout = 10 * time.Second
)

// knownProfile is what another server told of a user.
type knownProfile struct {
	fields map[string]json.RawMessage // nil: there is no such user
	until  time.Time
}

// forgetProfiles forgets what servers told of the profiles of users who join a room, which is also how a new name
// arrives: what the room shows and what the profile says would differ. It is a subscriber of the log.
func (a *API) forgetProfiles(batch []storage.Notice, _ int64) {
	for i := range batch {
		if batch[i].Kind != storage.Event {
			continue
		}
		room := a.rooms.ActiveRoom(batch[i].Room)
		if room == nil {
			continue
		}
		if e := room.Latest(batch[i].Pos); e != nil && e.Type == pdu.TypeMember && e.Membership() == roomserver.Join {
			a.profiles.Delete(*e.StateKey)
		}
	}
}

var errNoProfile = mxerr.NotFound("There is no profile of this user")

// Profile asks the server of a user for the user's profile, or remembers what it said a moment ago. Nobody may change
// the answer. The error is a *mxerr.Error: 404 M_NOT_FOUND, what the server says, or 502 M_UNKNOWN.
//
// spec: server-server-api v1.19 "GET /query/profile"
func (a *API) Profile(ctx context.Context, userID string) (map[string]json.RawMessage, error) {
	if known, ok := a.profiles.Get(userID); ok && time.Now().Before(known.until) {
		if known.fields == nil {
			return nil, errNoProfile
		}
		return known.fields, nil
	}
	raw, err := a.client.Do(ctx, client.Request{
		Server: pdu.ServerOf(userID), Method: http.MethodGet, Path: v1 + "/query/profile?" + url.Values{"user_id": {userID}}.Encode(),
		Timeout: profileTimeout, MaxBytes: maxProfile,
	})
	known := knownProfile{until: time.Now().Add(profileFresh)}
	var said *client.Error
	switch {
	case errors.As(err, &said) && said.Status == http.StatusNotFound:
		err = errNoProfile
	case errors.As(err, &said) && said.Status == http.StatusForbidden:
		return nil, mxerr.Forbidden("The user's server does not tell the profile").With(err)
	case err != nil:
		return nil, mxerr.New(http.StatusBadGateway, "M_UNKNOWN", "The user's server gave no answer").With(err)
	default:
		if err := json.Unmarshal(raw, &known.fields); err != nil || known.fields == nil {
			return nil, mxerr.New(http.StatusBadGateway, "M_UNKNOWN", "The user's server gave no profile").With(err)
		}
		for name, value := range known.fields {
			if string(value) == "null" { // which is to say that there is none
				delete(known.fields, name)
			}
		}
	}
	a.profiles.Put(strings.Clone(userID), known, 1)
	if err != nil {
		return nil, err
	}
	return known.fields, nil
}
