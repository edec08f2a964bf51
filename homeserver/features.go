package homeserver

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"sync"

	"github.com/sirupsen/logrus"

	"github.com/myelin-im/myelin/accounts"
	"github.com/myelin-im/myelin/appservice"
	"github.com/myelin-im/myelin/clientapi"
	"github.com/myelin-im/myelin/directory"
	"github.com/myelin-im/myelin/ephemeral"
	"github.com/myelin-im/myelin/federation"
	"github.com/myelin-im/myelin/federation/keys"
	"github.com/myelin-im/myelin/homeserver/config"
	"github.com/myelin-im/myelin/homeserver/signingkey"
	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/ratelimit"
	"github.com/myelin-im/myelin/push"
	"github.com/myelin-im/myelin/push/unread"
	"github.com/myelin-im/myelin/reports"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/roomserver/pdu"
	"github.com/myelin-im/myelin/search"
	"github.com/myelin-im/myelin/storage"
	"github.com/myelin-im/myelin/syncapi"
)

// schemas are the tables of all features, those of lower floors first.
var schemas = []storage.Schema{roomserver.Schema, accounts.Schema, ephemeral.Schema, push.Schema, directory.Schema, reports.Schema, keys.Schema, syncapi.Schema, search.Schema}

// features are the parts of the server that know Matrix. The zero value can tell its endpoints, but not serve them.
type features struct {
	rooms     *roomserver.Server
	accounts  *accounts.API
	ephemeral *ephemeral.API
	push      *push.API
	unread    *unread.Counts
	client    *clientapi.API
	sync      *syncapi.API
	directory *directory.API
	reports   *reports.API
	search    *search.API

	federation *federation.API
}

// newFeatures puts the features together, each on those that it uses. They must be complete before the first write,
// because several follow the log from where it ends now.
func newFeatures(cfg *config.Config, db *storage.DB, key signingkey.Key, limits *ratelimit.Limiter, log *logrus.Logger) (*features, error) {
	part := func(name string) *logrus.Entry { return log.WithField("part", name) }
	services, err := loadAppservices(cfg)
	if err != nil {
		return nil, err
	}
	f := new(features)
	others, err := newOthers(cfg, db, key, part("federation"))
	if err != nil {
		return nil, err
	}
	f.rooms, err = roomserver.New(db, roomserver.Options{
		ServerName: cfg.Server.Name, KeyID: key.ID, Key: key.Private, Log: part("rooms"),
	})
	if err != nil {
		return nil, fmt.Errorf("set up rooms: %w", err)
	}
	f.ephemeral, err = ephemeral.New(ephemeral.Config{Presence: cfg.Presence.Enabled}, ephemeral.Deps{
		DB: db, Rooms: f.rooms, Log: part("ephemeral"),
	})
	if err != nil {
		return nil, fmt.Errorf("set up receipts, typing and presence: %w", err)
	}
	f.push = push.New(db)
	f.accounts, err = accounts.New(accountsConfig(cfg), accounts.Deps{
		DB: db, Rooms: roomsOfAccounts{f.rooms}, Hooks: []accounts.Hooks{f.ephemeral.Hooks()},
		Computed:    map[string]func(*storage.Tx, string) (json.RawMessage, error){"m.push_rules": f.push.AccountData},
		Appservices: services, Limiter: limits, Log: part("accounts"),
	})
	if err != nil {
		return nil, fmt.Errorf("set up accounts: %w", err)
	}
	f.unread, err = unread.New(unread.Deps{DB: db, Rooms: f.rooms, Receipts: f.ephemeral, Rules: f.push, Log: part("unread")})
	if err != nil {
		return nil, fmt.Errorf("set up unread counts: %w", err)
	}
	f.client = clientapi.New(db, f.rooms, profiles{db}, clientapi.Options{DefaultVersion: cfg.Rooms.DefaultVersion}, part("client"))
	f.sync, err = syncapi.New(syncapi.Deps{DB: db, Rooms: f.rooms, Ephemeral: f.ephemeral, Push: f.push, Unread: f.unread, Accounts: f.accounts})
	if err != nil {
		return nil, fmt.Errorf("set up sync: %w", err)
	}
	if f.directory, err = directory.New(db, f.rooms); err != nil {
		return nil, fmt.Errorf("set up the directory: %w", err)
	}
	f.reports = reports.New(db, f.rooms)
	f.search = search.New(search.Deps{DB: db, Rooms: f.rooms, Ignored: f.unread.Ignored, Log: part("search")})
	f.federation, err = federation.New(federation.Deps{
		Name: cfg.Server.Name, Policy: others.policy, DB: db, Rooms: f.rooms, Client: others.client, Keys: others.keys,
		EDUs: map[string]federation.EDUHandler{}, Log: part("federation"),
	})
	if err != nil {
		return nil, fmt.Errorf("set up federation: %w", err)
	}
	return f, nil
}

// endpoints is everything that the features serve.
func (f *features) endpoints() []httpapi.Endpoint {
	var all []httpapi.Endpoint
	for _, some := range [][]httpapi.Endpoint{
		f.accounts.Endpoints(), f.ephemeral.Endpoints(), f.push.Endpoints(), f.client.Endpoints(), f.sync.Endpoints(),
		f.directory.Endpoints(), f.reports.Endpoints(), f.search.Endpoints(), f.federation.Endpoints(),
	} {
		all = append(all, some...)
	}
	return all
}

// authenticate finds the caller of a request.
func (f *features) authenticate(ctx context.Context, token string, r *http.Request) (*httpapi.Caller, error) {
	return f.accounts.Authenticate(ctx, token, r)
}

// authenticateServer finds the server that signed a request.
func (f *features) authenticateServer(ctx context.Context, r *http.Request, body []byte) (*httpapi.Caller, error) {
	return f.federation.Authenticate(ctx, r, body)
}

// start lets the features do what they do in the background until ctx ends; then the channel is closed.
func (f *features) start(ctx context.Context) (ended <-chan struct{}) {
	var group sync.WaitGroup
	group.Go(func() { f.accounts.Run(ctx) })
	group.Go(func() { f.ephemeral.Run(ctx) })
	group.Go(func() { f.unread.Run(ctx) })
	group.Go(func() { f.client.Run(ctx) })
	group.Go(func() { f.rooms.Run(ctx) })
	group.Go(func() { f.search.Run(ctx) })
	group.Go(func() { f.federation.Run(ctx) })
	done := make(chan struct{})
	go func() {
		group.Wait()
		close(done)
	}()
	return done
}

// release answers requests that wait for something to happen.
func (f *features) release() { f.sync.Release() }

func loadAppservices(cfg *config.Config) (*appservice.Set, error) {
	var list []*appservice.Registration
	for _, file := range cfg.Appservices.Files {
		registration, err := appservice.Load(file)
		if err != nil {
			return nil, err
		}
		list = append(list, registration)
	}
	return appservice.NewSet(cfg.Server.Name, list...)
}

func accountsConfig(cfg *config.Config) accounts.Config {
	c := accounts.Config{
		ServerName: cfg.Server.Name,
		Registration: accounts.Registration{
			Open: cfg.Registration.Open, RequireToken: cfg.Registration.RequireToken,
			Guests: cfg.Registration.Guests, SharedSecret: cfg.Registration.SharedSecret,
		},
		AccessTokenLifetime: cfg.Sessions.AccessTokenLifetime,
		Hashing: accounts.Hashing{
			MemoryKiB: uint32(cfg.Passwords.Memory >> 10), Iterations: uint32(cfg.Passwords.Iterations), Parallel: cfg.Passwords.Parallel,
		},
		WellKnown: accounts.WellKnown{
			ClientURL: cfg.Server.ClientURL, Server: cfg.Federation.PublicAddress, SupportPage: cfg.Server.SupportPage,
		},
		DefaultRoomVersion: cfg.Rooms.DefaultVersion,
		RoomVersions:       map[string]string{},
	}
	if url := cfg.Registration.TermsURL; url != "" {
		c.Registration.Policies = map[string]accounts.Policy{"terms": {
			Version:      cfg.Registration.TermsVersion,
			Translations: map[string]accounts.Translation{"en": {Name: cfg.Registration.TermsName, URL: url}},
		}}
	}
	if email := cfg.Server.SupportEmail; email != "" {
		c.WellKnown.Contacts = []accounts.Contact{{Email: email, Role: "m.role.admin"}}
	}
	for _, version := range pdu.Versions() {
		c.RoomVersions[version.ID] = "stable"
	}
	return c
}

// roomsOfAccounts is what accounts ask of the rooms.
type roomsOfAccounts struct {
	rooms *roomserver.Server
}

// ProfileChanged implements accounts.Rooms.
func (r roomsOfAccounts) ProfileChanged(ctx context.Context, userID string, change accounts.ProfileChange) error {
	var unless *string
	if change.OnlyUnchanged {
		unless = &change.Old
	}
	return r.rooms.SetMemberField(ctx, userID, change.Field, change.New, unless)
}

// LeaveAll implements accounts.Rooms.
func (r roomsOfAccounts) LeaveAll(ctx context.Context, userID string) error {
	return r.rooms.LeaveAll(ctx, userID)
}

// profiles is what membership events ask of accounts.
type profiles struct {
	db *storage.DB
}

// MemberProfile implements clientapi.Profiles.
func (p profiles) MemberProfile(ctx context.Context, userID string) (displayName, avatarURL string, err error) {
	err = p.db.Read(ctx, func(tx *storage.Tx) (err error) {
		displayName, avatarURL, err = accounts.MemberProfile(tx, userID)
		return err
	})
	return displayName, avatarURL, err
}
