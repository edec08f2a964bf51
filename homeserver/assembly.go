package homeserver

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/sirupsen/logrus"

	"github.com/myelin-im/myelin/accounts"
	"github.com/myelin-im/myelin/appservice"
	"github.com/myelin-im/myelin/clientapi"
	"github.com/myelin-im/myelin/delayed"
	"github.com/myelin-im/myelin/directory"
	"github.com/myelin-im/myelin/e2ee"
	"github.com/myelin-im/myelin/ephemeral"
	"github.com/myelin-im/myelin/federation"
	"github.com/myelin-im/myelin/federation/queue"
	"github.com/myelin-im/myelin/homeserver/config"
	"github.com/myelin-im/myelin/homeserver/signingkey"
	"github.com/myelin-im/myelin/internal/mail"
	"github.com/myelin-im/myelin/internal/ratelimit"
	"github.com/myelin-im/myelin/notices"
	"github.com/myelin-im/myelin/push"
	"github.com/myelin-im/myelin/push/notifications"
	"github.com/myelin-im/myelin/push/pushers"
	"github.com/myelin-im/myelin/push/threads"
	"github.com/myelin-im/myelin/push/unread"
	"github.com/myelin-im/myelin/reports"
	"github.com/myelin-im/myelin/retention"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/search"
	"github.com/myelin-im/myelin/storage"
	"github.com/myelin-im/myelin/syncapi"
)

// assembly puts the features together, each on those that it uses.
type assembly struct {
	cfg    *config.Config
	db     *storage.DB
	key    signingkey.Key
	limits *ratelimit.Limiter
	log    *logrus.Logger

	services *appservice.Set
	mailer   *mail.Sender // nil if no e-mail is to be sent
	others   *others
	f        *features
}

// newFeatures returns the features of a server. They must be complete before the first write, because several follow the
// log from where it ends now.
func newFeatures(cfg *config.Config, db *storage.DB, key signingkey.Key, limits *ratelimit.Limiter, log *logrus.Logger) (*features, error) {
	a := &assembly{cfg: cfg, db: db, key: key, limits: limits, log: log, f: &features{db: db}}
	for _, step := range []func() error{a.outside, a.rooms, a.people, a.notifying, a.federation, a.clients, a.storing} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	return a.f, nil
}

// part is the log of a feature.
func (a *assembly) part(name string) *logrus.Entry { return a.log.WithField("part", name) }

// outside makes what reaches beyond this server: application services, e-mail, other servers, services of push.
func (a *assembly) outside() (err error) {
	if a.services, err = loadAppservices(a.cfg); err != nil {
		return err
	}
	if a.mailer, err = newMailer(a.cfg); err != nil {
		return err
	}
	if a.others, err = newOthers(a.cfg, a.db, a.key, a.part("federation")); err != nil {
		return err
	}
	if a.f.gateway, err = newGateway(a.cfg, a.part("gateway")); err != nil {
		return fmt.Errorf("set up the push gateway: %w", err)
	}
	return nil
}

// messageLifetimes is what the server says about how long messages live.
func (a *assembly) messageLifetimes() roomserver.Retention {
	r := &a.cfg.Retention
	return roomserver.Retention{Enabled: r.Enabled, Default: r.Default, AtLeast: r.AtLeast, AtMost: r.AtMost}
}

// rooms makes rooms and what else happens in them.
func (a *assembly) rooms() (err error) {
	f := a.f
	f.rooms, err = roomserver.New(a.db, roomserver.Options{
		ServerName: a.cfg.Server.Name, KeyID: a.key.ID, Key: a.key.Private, OldKeys: a.key.OldPublic(), Log: a.part("rooms"),
		Retention: a.messageLifetimes(),
	})
	if err != nil {
		return fmt.Errorf("set up rooms: %w", err)
	}
	f.ephemeral, err = ephemeral.New(ephemeral.Config{Presence: a.cfg.Presence.Enabled}, ephemeral.Deps{
		DB: a.db, Rooms: f.rooms, Log: a.part("ephemeral"),
	})
	if err != nil {
		return fmt.Errorf("set up receipts, typing and presence: %w", err)
	}
	return nil
}

// people makes accounts and the keys of their devices.
func (a *assembly) people() (err error) {
	f := a.f
	f.e2ee, err = e2ee.New(e2ee.Deps{DB: a.db, Rooms: f.rooms, Remote: remoteKeys{a.others.client}, Undelivered: a.cfg.Federation.UndeliveredMessages, Log: a.part("e2ee")})
	if err != nil {
		return fmt.Errorf("set up encryption: %w", err)
	}
	f.push = push.New(a.db)
	f.accounts, err = accounts.New(accountsConfig(a.cfg, f.gateway), accounts.Deps{
		DB: a.db, Rooms: roomsOfAccounts{f.rooms}, Hooks: []accounts.Hooks{f.ephemeral.Hooks(), f.e2ee.Hooks(), pushers.Hooks(), delayed.Hooks(), threads.Hooks()},
		Computed:    map[string]func(*storage.Tx, string) (json.RawMessage, error){"m.push_rules": f.push.AccountData},
		Appservices: a.services, Mail: a.mailer, Limiter: a.limits, Log: a.part("accounts"),
		RemoteProfile: func(ctx context.Context, user string) (map[string]json.RawMessage, error) {
			return f.federation.Profile(ctx, user)
		},
	})
	if err != nil {
		return fmt.Errorf("set up accounts: %w", err)
	}
	f.e2ee.SetAccounts(f.accounts)
	return nil
}

// notifying makes what counts and tells what people have not read.
func (a *assembly) notifying() (err error) {
	f := a.f
	f.unread = unread.New(unread.Deps{DB: a.db, Rooms: f.rooms, Receipts: f.ephemeral, Rules: f.push, Log: a.part("unread")})
	var mails *pushers.Mails
	if a.mailer != nil {
		email := &a.cfg.Email
		mails, err = pushers.NewMails(a.mailer, email.AppName, a.cfg.Server.Name, email.Templates, email.UnreadAfter)
		if err != nil {
			return fmt.Errorf("set up e-mail about unread messages: %w", err)
		}
	}
	f.pushers = pushers.New(pushers.Config{
		AllowPrivate: a.cfg.Push.AllowPrivateAddresses, Gateway: f.gateway, ClientURL: strings.TrimRight(a.cfg.Server.ClientURL, "/"), Mails: mails,
	}, pushers.Deps{
		DB: a.db, Rooms: f.rooms, Unread: f.unread, Log: a.part("pushers"),
	})
	f.notified = notifications.New(notifications.Deps{DB: a.db, Rooms: f.rooms, Receipts: f.ephemeral, Unread: f.unread})
	f.threads = threads.New(a.db, f.rooms)
	return nil
}

// federation makes what other servers see of this one.
func (a *assembly) federation() (err error) {
	f := a.f
	f.federation, err = federation.New(federation.Deps{
		Name: a.cfg.Server.Name, Policy: a.others.policy, DB: a.db, Rooms: f.rooms, Client: a.others.client, Keys: a.others.keys, Ephemeral: f.ephemeral,
		EDUs: map[string]federation.EDUHandler{
			"m.direct_to_device":   f.e2ee.ReceiveToDevice,
			"m.device_list_update": f.e2ee.ReceiveDeviceList,
			"m.signing_key_update": f.e2ee.ReceiveSigningKeys,
		},
		Source: owedEDUs{f.e2ee}, MayInvite: f.mayInvite, Whole: f.e2ee.MembersKnown, Log: a.part("federation"),
	})
	if err != nil {
		return fmt.Errorf("set up federation: %w", err)
	}
	f.rooms.SetRecommend(f.federation.Recommend)
	return nil
}

// clients makes what clients see beside accounts.
func (a *assembly) clients() (err error) {
	f := a.f
	f.services = appservice.New(a.services)
	f.notices = notices.New(notices.Config{
		Localpart: a.cfg.Notices.Localpart, DisplayName: a.cfg.Notices.DisplayName, AvatarURL: a.cfg.Notices.AvatarURL,
		RoomName: a.cfg.Notices.RoomName, RoomVersion: a.cfg.Rooms.DefaultVersion,
	}, notices.Deps{DB: a.db, Rooms: f.rooms, Accounts: f.accounts})
	f.client = clientapi.New(a.db, f.rooms, profiles{a.db}, clientapi.Options{
		DefaultVersion: a.cfg.Rooms.DefaultVersion, NoticeRoom: f.notices.IsRoom, Delay: f.scheduleByQuery, Attach: f.attachMedia, Remote: f.federation,
		Appservices: a.services,
	}, a.part("client"))
	f.sync, err = syncapi.New(syncapi.Deps{DB: a.db, Rooms: f.rooms, Ephemeral: f.ephemeral, Push: f.push, Unread: f.unread, Accounts: f.accounts, E2EE: f.e2ee, History: f.federation, Join: f.client.Join, Log: a.part("sync")})
	if err != nil {
		return fmt.Errorf("set up sync: %w", err)
	}
	f.directory = directory.New(a.db, f.rooms, a.others.client, f.federation.ResolveAlias)
	f.reports = reports.New(a.db, f.rooms, a.part("reports"))
	f.delayed = delayed.New(delayed.Limits{MaxDelay: a.cfg.DelayedEvents.MaxDelay, MaxScheduled: a.cfg.DelayedEvents.MaxScheduled}, delayed.Deps{
		DB: a.db, Send: f.client.SendDelayed, Limiter: a.limits, Log: a.part("delayed"),
	})
	return nil
}

// storing makes what keeps, finds and deletes the past.
func (a *assembly) storing() (err error) {
	f := a.f
	f.search = search.New(search.Deps{DB: a.db, Rooms: f.rooms, Ignored: f.unread.Ignored, Log: a.part("search")})
	f.retention = retention.New(retention.Config{Policy: a.messageLifetimes(), Interval: a.cfg.Retention.PurgeInterval, Abandoned: a.cfg.Retention.AbandonedRooms}, retention.Deps{
		DB: a.db, Rooms: f.rooms, Log: a.part("retention"), Hooks: []retention.Hooks{
			{Begin: f.search.Purging, Events: search.Purged, Room: search.RoomRemoved},
			{Events: ephemeral.Purged, Room: ephemeral.RoomRemoved},
			{Room: unread.RoomRemoved},
			{Room: threads.RoomRemoved},
			{Room: directory.RoomRemoved},
			{Room: queue.RoomRemoved},
		},
	})
	if f.media, err = newMedia(a.cfg, a.db, f.rooms, a.others.client, a.part("media")); err != nil {
		return fmt.Errorf("set up media: %w", err)
	}
	return nil
}

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
