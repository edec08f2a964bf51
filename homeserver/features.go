package homeserver

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"

	"github.com/sirupsen/logrus"

	"github.com/myelin-im/myelin/accounts"
	"github.com/myelin-im/myelin/appservice"
	"github.com/myelin-im/myelin/clientapi"
	"github.com/myelin-im/myelin/delayed"
	"github.com/myelin-im/myelin/directory"
	"github.com/myelin-im/myelin/e2ee"
	"github.com/myelin-im/myelin/ephemeral"
	"github.com/myelin-im/myelin/federation"
	"github.com/myelin-im/myelin/federation/inbox"
	"github.com/myelin-im/myelin/federation/keys"
	"github.com/myelin-im/myelin/federation/queue"
	"github.com/myelin-im/myelin/homeserver/config"
	"github.com/myelin-im/myelin/homeserver/signingkey"
	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mail"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/internal/ratelimit"
	"github.com/myelin-im/myelin/mediaapi"
	"github.com/myelin-im/myelin/notices"
	"github.com/myelin-im/myelin/push"
	"github.com/myelin-im/myelin/push/gateway"
	"github.com/myelin-im/myelin/push/notifications"
	"github.com/myelin-im/myelin/push/pushers"
	"github.com/myelin-im/myelin/push/threads"
	"github.com/myelin-im/myelin/push/unread"
	"github.com/myelin-im/myelin/reports"
	"github.com/myelin-im/myelin/retention"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/roomserver/pdu"
	"github.com/myelin-im/myelin/search"
	"github.com/myelin-im/myelin/storage"
	"github.com/myelin-im/myelin/syncapi"
)

// schemas are the tables of all features, those of lower floors first.
var schemas = []storage.Schema{roomserver.Schema, accounts.Schema, e2ee.Schema, ephemeral.Schema, push.Schema, threads.Schema, pushers.Schema, directory.Schema, notices.Schema, reports.Schema, keys.Schema, queue.Schema, inbox.Schema, syncapi.Schema, search.Schema, delayed.Schema, mediaapi.Schema}

// features are the parts of the server that know Matrix. The zero value can tell its endpoints, but not serve them.
type features struct {
	db        *storage.DB
	rooms     *roomserver.Server
	accounts  *accounts.API
	ephemeral *ephemeral.API
	e2ee      *e2ee.API
	push      *push.API
	unread    *unread.Counts
	pushers   *pushers.API
	gateway   *gateway.Gateway
	client    *clientapi.API
	sync      *syncapi.API
	directory *directory.API
	notices   *notices.API
	services  *appservice.API
	notified  *notifications.API
	reports   *reports.API
	search    *search.API
	retention *retention.Cleaner

	media      *mediaapi.API
	federation *federation.API
	delayed    *delayed.API
	threads    *threads.API
}

// newFeatures puts the features together, each on those that it uses. They must be complete before the first write,
// because several follow the log from where it ends now.
func newFeatures(cfg *config.Config, db *storage.DB, key signingkey.Key, limits *ratelimit.Limiter, log *logrus.Logger) (*features, error) {
	part := func(name string) *logrus.Entry { return log.WithField("part", name) }
	services, err := loadAppservices(cfg)
	if err != nil {
		return nil, err
	}
	f := &features{db: db}
	others, err := newOthers(cfg, db, key, part("federation"))
	if err != nil {
		return nil, err
	}
	policy := roomserver.Retention{
		Enabled: cfg.Retention.Enabled, Default: cfg.Retention.Default, AtLeast: cfg.Retention.AtLeast, AtMost: cfg.Retention.AtMost,
	}
	f.rooms, err = roomserver.New(db, roomserver.Options{
		ServerName: cfg.Server.Name, KeyID: key.ID, Key: key.Private, OldKeys: key.OldPublic(), Log: part("rooms"), Retention: policy,
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
	f.e2ee, err = e2ee.New(e2ee.Deps{DB: db, Rooms: f.rooms, Remote: remoteKeys{others.client}, Log: part("e2ee")})
	if err != nil {
		return nil, fmt.Errorf("set up encryption: %w", err)
	}
	f.push = push.New(db)
	mailer, err := newMailer(cfg)
	if err != nil {
		return nil, err
	}
	if f.gateway, err = newGateway(cfg, part("gateway")); err != nil {
		return nil, fmt.Errorf("set up the push gateway: %w", err)
	}
	f.accounts, err = accounts.New(accountsConfig(cfg, f.gateway), accounts.Deps{
		DB: db, Rooms: roomsOfAccounts{f.rooms}, Hooks: []accounts.Hooks{f.ephemeral.Hooks(), f.e2ee.Hooks(), pushers.Hooks(), delayed.Hooks(), threads.Hooks()},
		Computed:    map[string]func(*storage.Tx, string) (json.RawMessage, error){"m.push_rules": f.push.AccountData},
		Appservices: services, Mail: mailer, Limiter: limits, Log: part("accounts"),
		RemoteProfile: func(ctx context.Context, user string) (map[string]json.RawMessage, error) {
			return f.federation.Profile(ctx, user)
		},
	})
	if err != nil {
		return nil, fmt.Errorf("set up accounts: %w", err)
	}
	f.e2ee.SetAccounts(f.accounts)
	f.unread = unread.New(unread.Deps{DB: db, Rooms: f.rooms, Receipts: f.ephemeral, Rules: f.push, Log: part("unread")})
	var mails *pushers.Mails
	if mailer != nil {
		mails, err = pushers.NewMails(mailer, cfg.Email.AppName, cfg.Server.Name, cfg.Email.Templates, cfg.Email.UnreadAfter)
		if err != nil {
			return nil, fmt.Errorf("set up e-mail about unread messages: %w", err)
		}
	}
	f.pushers = pushers.New(pushers.Config{
		AllowPrivate: cfg.Push.AllowPrivateAddresses, Gateway: f.gateway, ClientURL: strings.TrimRight(cfg.Server.ClientURL, "/"), Mails: mails,
	}, pushers.Deps{
		DB: db, Rooms: f.rooms, Unread: f.unread, Log: part("pushers"),
	})
	f.federation, err = federation.New(federation.Deps{
		Name: cfg.Server.Name, Policy: others.policy, DB: db, Rooms: f.rooms, Client: others.client, Keys: others.keys, Ephemeral: f.ephemeral,
		EDUs: map[string]federation.EDUHandler{
			"m.direct_to_device":   f.e2ee.ReceiveToDevice,
			"m.device_list_update": f.e2ee.ReceiveDeviceList,
			"m.signing_key_update": f.e2ee.ReceiveSigningKeys,
		},
		Source: owedEDUs{f.e2ee}, MayInvite: f.mayInvite, Whole: f.e2ee.MembersKnown, Log: part("federation"),
	})
	if err != nil {
		return nil, fmt.Errorf("set up federation: %w", err)
	}
	f.rooms.SetRecommend(f.federation.Recommend)
	f.services = appservice.New(services)
	f.notified = notifications.New(notifications.Deps{DB: db, Rooms: f.rooms, Receipts: f.ephemeral, Unread: f.unread})
	f.notices = notices.New(notices.Config{
		Localpart: cfg.Notices.Localpart, DisplayName: cfg.Notices.DisplayName, AvatarURL: cfg.Notices.AvatarURL,
		RoomName: cfg.Notices.RoomName, RoomVersion: cfg.Rooms.DefaultVersion,
	}, notices.Deps{DB: db, Rooms: f.rooms, Accounts: f.accounts})
	f.client = clientapi.New(db, f.rooms, profiles{db}, clientapi.Options{
		DefaultVersion: cfg.Rooms.DefaultVersion, NoticeRoom: f.notices.IsRoom, Delay: f.scheduleByQuery, Attach: f.attachMedia, Remote: f.federation,
		Appservices: services,
	}, part("client"))
	f.sync, err = syncapi.New(syncapi.Deps{DB: db, Rooms: f.rooms, Ephemeral: f.ephemeral, Push: f.push, Unread: f.unread, Accounts: f.accounts, E2EE: f.e2ee, History: f.federation})
	if err != nil {
		return nil, fmt.Errorf("set up sync: %w", err)
	}
	f.directory = directory.New(db, f.rooms, others.client, f.federation.ResolveAlias)
	f.reports = reports.New(db, f.rooms)
	f.threads = threads.New(db, f.rooms)
	f.delayed = delayed.New(delayed.Limits{MaxDelay: cfg.DelayedEvents.MaxDelay, MaxScheduled: cfg.DelayedEvents.MaxScheduled}, delayed.Deps{
		DB: db, Send: f.client.SendDelayed, Limiter: limits, Log: part("delayed"),
	})
	f.search = search.New(search.Deps{DB: db, Rooms: f.rooms, Ignored: f.unread.Ignored, Log: part("search")})
	f.retention = retention.New(retention.Config{Policy: policy, Interval: cfg.Retention.PurgeInterval, Abandoned: cfg.Retention.AbandonedRooms}, retention.Deps{
		DB: db, Rooms: f.rooms, Log: part("retention"), Hooks: []retention.Hooks{
			{Events: f.search.Purged, Room: search.RoomRemoved},
			{Events: ephemeral.Purged, Room: ephemeral.RoomRemoved},
			{Room: unread.RoomRemoved},
			{Room: threads.RoomRemoved},
			{Room: directory.RoomRemoved},
			{Room: queue.RoomRemoved},
		},
	})
	if f.media, err = newMedia(cfg, db, f.rooms, others.client, part("media")); err != nil {
		return nil, fmt.Errorf("set up media: %w", err)
	}
	return f, nil
}

// mayInvite is what federation asks before a local user is invited by somebody elsewhere.
func (f *features) mayInvite(ctx context.Context, user, sender string) error {
	var exists bool
	var permission accounts.InvitePermission
	err := f.db.Read(ctx, func(tx *storage.Tx) (err error) {
		if exists, err = accounts.Exists(tx, user); err == nil && exists {
			permission, err = accounts.InvitePermissionOf(tx, user)
		}
		return err
	})
	switch {
	case err != nil:
		return fmt.Errorf("permission to invite %s: %w", user, err)
	case !exists:
		return mxerr.NotFound("There is no such user here")
	case permission.Of(sender) == accounts.InviteBlocked:
		return mxerr.New(http.StatusForbidden, "M_INVITE_BLOCKED", user+" does not accept invites")
	}
	return nil
}

// scheduleByQuery is what clientapi asks of delayed events, which are put together after it.
func (f *features) scheduleByQuery(ctx context.Context, by *httpapi.Caller, roomID string, d roomserver.Draft, delayMS int64) (string, error) {
	return f.delayed.ScheduleByQuery(ctx, by, roomID, d, delayMS)
}

// attachMedia is what clientapi asks of media, which is put together after it.
func (f *features) attachMedia(ctx context.Context, userID string, uris []string) (func(u *storage.Unit, eventID string), error) {
	return f.media.Attach(ctx, userID, uris)
}

// endpoints is everything that the features serve.
func (f *features) endpoints() []httpapi.Endpoint {
	var all []httpapi.Endpoint
	for _, some := range [][]httpapi.Endpoint{
		f.accounts.Endpoints(), f.ephemeral.Endpoints(), f.e2ee.Endpoints(), f.push.Endpoints(), f.pushers.Endpoints(), f.gateway.Endpoints(), f.client.Endpoints(), f.sync.Endpoints(),
		f.directory.Endpoints(), f.notices.Endpoints(), f.services.Endpoints(), f.notified.Endpoints(), f.reports.Endpoints(), f.search.Endpoints(), f.media.Endpoints(), f.federation.Endpoints(), f.delayed.Endpoints(), f.threads.Endpoints(), f.retention.Endpoints(),
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
	group.Go(func() { f.e2ee.Run(ctx) })
	group.Go(func() { f.unread.Run(ctx) })
	group.Go(func() { f.pushers.Run(ctx) })
	group.Go(func() { f.client.Run(ctx) })
	group.Go(func() { f.rooms.Run(ctx) })
	group.Go(func() { f.search.Run(ctx) })
	group.Go(func() { f.media.Run(ctx) })
	group.Go(func() { f.retention.Run(ctx) })
	group.Go(func() { f.federation.Run(ctx) })
	group.Go(func() { f.delayed.Run(ctx) })
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

// newMailer sends the e-mail of this server; it is nil if none is to be sent.
func newMailer(cfg *config.Config) (*mail.Sender, error) {
	e := &cfg.Email
	if e.SMTP == "" {
		return nil, nil
	}
	return mail.New(mail.Config{Address: e.SMTP, Security: mail.Security(e.TLS), User: e.User, Password: e.Password, From: e.From})
}

func accountsConfig(cfg *config.Config, webPush *gateway.Gateway) accounts.Config {
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
			ClientURL: cfg.Server.ClientURL, Server: cfg.Federation.PublicAddress, SupportPage: cfg.Server.SupportPage, PolicyKey: cfg.Server.PolicyKey,
		},
		Email: accounts.Email{
			AppName: cfg.Email.AppName, BaseURL: cfg.Server.ClientURL, Templates: cfg.Email.Templates, Required: cfg.Registration.RequireEmail,
		},
		DefaultRoomVersion: cfg.Rooms.DefaultVersion,
		RoomVersions:       map[string]string{},
		Capabilities: map[string]any{
			"org.matrix.msc4174.webpush":     webPush.Capability(),
			"io.element.msc4452.preview_url": map[string]bool{"enabled": cfg.Media.Previews.Enabled},
		},
	}
	if d := cfg.DelayedEvents; d.MaxScheduled > 0 {
		c.Capabilities["org.matrix.msc4140.delayed_events"] = map[string]int64{
			"max_delay_ms": d.MaxDelay.Milliseconds(), "max_scheduled": int64(d.MaxScheduled),
		}
	}
	if c.Email.BaseURL == "" {
		c.Email.BaseURL = "https://" + cfg.Server.Name
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
	for _, version := range pdu.Supported() {
		c.RoomVersions[version.ID] = "unstable"
		if version.Stable() {
			c.RoomVersions[version.ID] = "stable"
		}
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

// Known implements accounts.Rooms.
func (r roomsOfAccounts) Known(ctx context.Context, userID string) (bool, error) {
	var rooms []int64
	err := r.rooms.MembershipsOf(ctx, []string{userID}, func(m roomserver.RoomMembership) {
		if m.Membership == roomserver.Join {
			rooms = append(rooms, m.Room)
		}
	})
	for _, nid := range rooms {
		room, err := r.rooms.RoomByNID(ctx, nid)
		if err != nil {
			return false, err
		}
		if room.Resident() {
			return true, nil
		}
	}
	return false, err
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
