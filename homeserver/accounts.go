package homeserver

import (
	"context"

	"github.com/myelin-im/myelin/accounts"
	"github.com/myelin-im/myelin/homeserver/config"
	"github.com/myelin-im/myelin/push/gateway"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/roomserver/pdu"
	"github.com/myelin-im/myelin/storage"
)

func accountsConfig(cfg *config.Config, webPush *gateway.Gateway) accounts.Config {
	c := accounts.Config{
		ServerName: cfg.Server.Name,
		Registration: accounts.Registration{
			Open: cfg.Registration.Open, RequireToken: cfg.Registration.RequireToken,
			Guests: cfg.Registration.Guests, SharedSecret: cfg.Registration.SharedSecret,
		},
		AccessTokenLifetime: cfg.Sessions.AccessTokenLifetime,
		MinPassword:         cfg.Passwords.MinLength,
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
