package accounts

import (
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/myelin-im/myelin/appservice"
	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mail"
	"github.com/myelin-im/myelin/internal/ratelimit"
	"github.com/myelin-im/myelin/storage"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Schema holds the tables of accounts.
var Schema = storage.Schema{Feature: "accounts", FS: migrations}

// Config is what an operator decides about accounts.
type Config struct {
	// ServerName is the domain of local user ids.
	ServerName string
	// Registration says who may make an account.
	Registration Registration
	// AccessTokenLifetime is how long access tokens of sessions that can refresh are valid; 0 takes 5 minutes.
	AccessTokenLifetime time.Duration
	// MinPassword is the least length of a new password, in characters; 0 takes 1.
	MinPassword int
	// Hashing is the cost of passwords.
	Hashing Hashing
	// Email is what the server says in e-mails.
	Email Email
	// WellKnown is what the server says at /.well-known/matrix/.
	WellKnown WellKnown
	// DefaultRoomVersion and RoomVersions (version to "stable" or "unstable") are told to clients.
	DefaultRoomVersion string
	RoomVersions       map[string]string
	// Capabilities are those of other features, by name.
	Capabilities map[string]any
}

// Registration says who may make an account.
type Registration struct {
	// Open lets strangers register.
	Open bool
	// RequireToken asks them for a registration token.
	RequireToken bool
	// Guests lets anyone make guest accounts.
	Guests bool
	// SharedSecret lets a tool that knows it make accounts at /_synapse/admin/v1/register; empty: nobody.
	SharedSecret string
	// Policies are the documents that have to be accepted, by policy id.
	Policies map[string]Policy
}

// Policy is a document that users accept when they register.
type Policy struct {
	// Version of the document.
	Version string
	// Translations are its names and addresses by language code, for example "en".
	Translations map[string]Translation
}

// Translation is a policy in one language.
type Translation struct {
	Name string `json:"name"`
	URL  string `json:"url"`
}

// Rooms is what accounts ask of the rooms. What changes something may be called again for what is done already, and must
// then do nothing. An error means: try again later.
type Rooms interface {
	// ProfileChanged puts a user's new display name or avatar into their memberships of the rooms they are joined to.
	ProfileChanged(ctx context.Context, userID string, change ProfileChange) error
	// LeaveAll makes a user leave all rooms and reject all invites and knocks.
	LeaveAll(ctx context.Context, userID string) error
	// Known tells whether a user of another server is in a room with somebody of this one.
	Known(ctx context.Context, userID string) (bool, error)
}

// ProfileChange is a changed member of membership events.
type ProfileChange struct {
	// Field is "displayname" or "avatar_url".
	Field string `json:"field"`
	// Old and New are its values; empty means absent.
	Old string `json:"old"`
	New string `json:"new"`
	// OnlyUnchanged confines the change to rooms whose membership event has the old value (MSC4466).
	OnlyUnchanged bool `json:"only_unchanged"`
}

// Hooks is what another feature deletes or notes together with accounts and devices, in the same transaction. Each
// function may be nil; an error undoes the whole change. They may run more than once, like every Write.
type Hooks struct {
	// DeviceNamed is called before a device is made with a name that its client chose; an error refuses it.
	DeviceNamed func(tx *storage.Tx, userID, deviceID string) error
	// DevicesDeleted is called for devices that cease to exist.
	DevicesDeleted func(tx *storage.Tx, userID string, deviceIDs []string) error
	// DeviceRenamed is called when the display name of a device changes.
	DeviceRenamed func(tx *storage.Tx, userID, deviceID string) error
	// Deactivated is called when an account ends; erase asks for deletion of all that is not an event.
	Deactivated func(tx *storage.Tx, userID string, erase bool) error
}

// Deps are the other parts of the server that accounts stand on.
type Deps struct {
	// DB must have been opened with Schema.
	DB *storage.DB
	// Rooms does the work in rooms.
	Rooms Rooms
	// Hooks of the features that stand above accounts.
	Hooks []Hooks
	// Computed is account data outside rooms that other features keep, by type: it can be read like any other and set
	// only through them.
	Computed map[string]func(tx *storage.Tx, userID string) (json.RawMessage, error)
	// RemoteProfile asks for the profile of a user of another server; nil: nobody is asked.
	RemoteProfile func(ctx context.Context, userID string) (map[string]json.RawMessage, error)
	// Appservices may act as and register users; nil: there are none.
	Appservices *appservice.Set
	// Mail sends e-mail; nil: none is sent, and addresses cannot be confirmed.
	Mail *mail.Sender
	// Limiter bounds password attempts and e-mails; nil sets no limits.
	Limiter *ratelimit.Limiter
	// Log gets what operators should know.
	Log *logrus.Entry
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// API is the accounts of one server. It is safe for concurrent use.
type API struct {
	cfg      Config
	db       *storage.DB
	rooms    Rooms
	hooks    []Hooks
	computed map[string]func(tx *storage.Tx, userID string) (json.RawMessage, error)
	services *appservice.Set
	profile  func(ctx context.Context, userID string) (map[string]json.RawMessage, error) // of other servers' users
	limiter  *ratelimit.Limiter
	mail     *mail.Sender
	log      *logrus.Entry
	now      func() time.Time

	texts    *texts
	hasher   *hasher
	cache    *tokenCache
	seen     *lastSeen
	erased   erasedUsers
	jobs     *jobs
	tokenIDs *storage.IDs
	jobIDs   *storage.IDs
	nonces   *nonces
	prune    pruner
}

// New makes the accounts on an open database. It must be called before the first write to the database.
func New(cfg Config, deps Deps) (*API, error) {
	if cfg.ServerName == "" || deps.DB == nil || deps.Rooms == nil || deps.Log == nil {
		return nil, errors.New("accounts: server name, database, rooms and log are required")
	}
	if len(cfg.ServerName) > maxUserID-len("@a:") {
		return nil, fmt.Errorf("accounts: server name %s is too long for user ids", cfg.ServerName)
	}
	if cfg.AccessTokenLifetime <= 0 {
		cfg.AccessTokenLifetime = 5 * time.Minute
	}
	if deps.Now == nil {
		deps.Now = time.Now
	}
	a := &API{
		cfg: cfg, db: deps.DB, rooms: deps.Rooms, hooks: deps.Hooks, computed: deps.Computed, services: deps.Appservices, profile: deps.RemoteProfile,
		limiter: deps.Limiter, mail: deps.Mail, log: deps.Log, now: deps.Now,
		hasher: newHasher(cfg.Hashing), cache: newTokenCache(), seen: newLastSeen(),
		tokenIDs: deps.DB.IDs("access_tokens"), jobIDs: deps.DB.IDs("account_jobs"),
		nonces: newNonces(cfg.Registration.SharedSecret, deps.Now),
	}
	var err error
	if a.texts, err = loadTexts(cfg.Email.Templates); err != nil {
		return nil, fmt.Errorf("accounts: %w", err)
	}
	if err = a.checkServerName(); err != nil {
		return nil, fmt.Errorf("accounts: %w", err)
	}
	a.jobs = newJobs(a)
	deps.DB.Subscribe(func(batch []storage.Notice, _ int64) {
		for i := range batch {
			if batch[i].Kind == storage.DeviceList {
				a.cache.forget(batch[i].User)
			}
		}
	})
	return a, nil
}

// checkServerName refuses a database with accounts of another server. Its name is in every identifier there, so that
// a server that begins to use another one, if only because it was started without its configuration, breaks both.
func (a *API) checkServerName() error {
	var user string
	found, err := a.db.Get(context.Background(), `SELECT user_id FROM accounts LIMIT 1`, nil, &user)
	if err != nil {
		return fmt.Errorf("look up an account: %w", err)
	}
	if _, local := a.localpart(user); found && !local {
		_, name, _ := strings.Cut(user, ":")
		return fmt.Errorf("the database belongs to the server %s, whose name cannot change to %s", name, a.cfg.ServerName)
	}
	return nil
}

// Run does what goes on in the background until ctx ends: it writes down when devices were last seen and works off
// the jobs in rooms. It returns when both have stopped, with what was noted written.
func (a *API) Run(ctx context.Context) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		a.jobs.run(ctx)
	}()
	a.writeLastSeen(ctx)
	<-done
}

// Endpoints lists the endpoints of accounts.
func (a *API) Endpoints() []httpapi.Endpoint {
	var all []httpapi.Endpoint
	for _, part := range [][]httpapi.Endpoint{
		a.registerEndpoints(), a.loginEndpoints(), a.deviceEndpoints(), a.passwordEndpoints(),
		a.accountDataEndpoints(), a.profileEndpoints(), a.filterEndpoints(), a.discoveryEndpoints(),
		a.moderationEndpoints(), a.openIDEndpoints(), a.emailEndpoints(), a.emailPages(), a.threePIDEndpoints(), a.fallbackEndpoints(),
	} {
		all = append(all, part...)
	}
	return all
}

// nowMS is the time in milliseconds.
func (a *API) nowMS() int64 { return a.now().UnixMilli() }

// userID makes the user id of a localpart.
func (a *API) userID(localpart string) string { return "@" + localpart + ":" + a.cfg.ServerName }

// localpart returns the localpart of a local user id.
func (a *API) localpart(userID string) (localpart string, local bool) {
	rest, ok := strings.CutPrefix(userID, "@")
	if !ok {
		return "", false
	}
	localpart, domain, ok := strings.Cut(rest, ":")
	return localpart, ok && domain == a.cfg.ServerName
}
