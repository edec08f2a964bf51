package homeserver

import (
	"context"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/myelin-im/myelin/homeserver/config"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/mediaapi"
	"github.com/myelin-im/myelin/mediaapi/blob"
	"github.com/myelin-im/myelin/mediaapi/thumbnail"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/storage"
)

// newMedia sets up the content repository.
func newMedia(cfg *config.Config, db *storage.DB, rooms *roomserver.Server, servers mediaapi.Servers, log *logrus.Entry) (*mediaapi.API, error) {
	m := cfg.Media
	deps := mediaapi.Deps{DB: db, Servers: servers, Events: eventsOf(rooms), Sees: seesOf(rooms), Log: log}
	if m.S3.Endpoint != "" {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		bucket, err := blob.NewS3(ctx, blob.S3Config{
			Endpoint: m.S3.Endpoint, Region: m.S3.Region, Bucket: m.S3.Bucket, Prefix: m.S3.Prefix,
			AccessKey: m.S3.AccessKey, SecretKey: m.S3.SecretKey, PathStyle: m.S3.PathStyle, Redirect: m.S3.Redirect,
		})
		if err != nil {
			return nil, fmt.Errorf("%w (media_s3.endpoint is %s)", err, m.S3.Endpoint)
		}
		deps.Store = bucket
	}
	c := mediaConfig(cfg)
	api, err := mediaapi.New(c, deps)
	if err != nil {
		return nil, fmt.Errorf("%w (media.folder is %s)", err, c.Folder)
	}
	return api, nil
}

// mediaConfig translates the settings.
func mediaConfig(cfg *config.Config) mediaapi.Config {
	m, t, p := cfg.Media, cfg.Media.Thumbnails, cfg.Media.Previews
	c := mediaapi.Config{
		ServerName: cfg.Server.Name, Folder: m.Folder, MaxUpload: m.MaxUpload, MaxRemote: m.MaxRemote, Frozen: m.Frozen,
		PendingFor: m.PendingFor, MaxPending: m.MaxPending, Quota: m.UserQuota, ScanCommand: m.ScanCommand, Linking: m.Linking,
		AllowPrivate: cfg.Federation.AllowPrivateAddresses,
		Retention: mediaapi.Retention{
			LocalUnused: m.LocalUnused, LocalAge: m.LocalAge, RemoteUnused: m.RemoteUnused, RemoteAge: m.RemoteAge,
		},
		Thumbnails: mediaapi.Thumbnails{MaxPixels: int64(t.MaxPixels), MaxFrames: t.MaxFrames, Workers: t.Workers, FFmpeg: t.FFmpeg},
		Previews: mediaapi.Previews{
			Enabled: p.Enabled, AllowPrivate: p.AllowPrivate, Deny: p.Deny, Allow: p.Allow, Keep: p.Keep, MaxImage: p.MaxImage,
			Robots: p.Robots, Languages: p.Languages,
		},
	}
	if c.Folder == "" {
		c.Folder = filepath.Join(cfg.Server.DataDir, "media")
	}
	if c.Thumbnails.Workers == 0 {
		c.Thumbnails.Workers = runtime.GOMAXPROCS(0)
	}
	for _, size := range t.Early {
		spec := thumbnail.Spec{Crop: strings.HasSuffix(size, "crop")}
		if _, err := fmt.Sscanf(size, "%dx%d", &spec.Width, &spec.Height); err == nil {
			c.Thumbnails.Early = append(c.Thumbnails.Early, spec)
		}
	}
	return c
}

// seesOf tells whether a user or a server sees an event; a redacted one no longer shows what was attached to it.
func seesOf(rooms *roomserver.Server) func(ctx context.Context, user, server, eventID string) (bool, error) {
	return func(ctx context.Context, user, server, eventID string) (bool, error) {
		room, e, err := rooms.FindEvent(ctx, eventID)
		if errors.Is(err, roomserver.ErrUnknownEvent) || err == nil && e.Redacted {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		if server != "" {
			return rooms.ServerViewer(room, server).Sees(ctx, e)
		}
		viewer, err := rooms.Viewer(ctx, room, user, room.Head().Pos)
		if err != nil {
			return false, err
		}
		return viewer.Sees(ctx, e)
	}
}

// eventsOf goes through the events of a room, or of all: history, and the current state, which may be older than that.
func eventsOf(rooms *roomserver.Server) func(ctx context.Context, roomID string, fn func(event []byte, state bool) error) error {
	const page = 200
	ofRoom := func(ctx context.Context, room *roomserver.Room, fn func(event []byte, state bool) error) error {
		state, err := rooms.StateEvents(ctx, room, room.Head().State)
		if err != nil {
			return err
		}
		for _, e := range state {
			if err := fn(e.JSON(), true); err != nil {
				return err
			}
		}
		for from := roomserver.AfterPosition(math.MaxInt64 - 1); ; {
			events, err := rooms.HistoryBefore(ctx, room, from, page)
			if err != nil {
				return err
			}
			for _, e := range events {
				if err := fn(e.JSON(), false); err != nil {
					return err
				}
				from = e.Token()
			}
			if len(events) < page {
				return nil
			}
		}
	}
	return func(ctx context.Context, roomID string, fn func(event []byte, state bool) error) error {
		if roomID != "" {
			room, err := rooms.Room(ctx, roomID)
			if errors.Is(err, roomserver.ErrUnknownRoom) {
				return mxerr.NotFound("Unknown room").With(err)
			}
			if err != nil {
				return err
			}
			return ofRoom(ctx, room, fn)
		}
		for after := int64(0); ; {
			nids, err := rooms.RoomsSince(ctx, 0, after, page)
			if err != nil || len(nids) == 0 {
				return err
			}
			for _, nid := range nids {
				room, err := rooms.RoomByNID(ctx, nid)
				if err == nil {
					err = ofRoom(ctx, room, fn)
				}
				if err != nil && !errors.Is(err, roomserver.ErrUnknownRoom) { // which was removed meanwhile
					return fmt.Errorf("events of room %d: %w", nid, err)
				}
				after = nid
			}
		}
	}
}
