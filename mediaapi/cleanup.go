package mediaapi

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/myelin-im/myelin/storage"
)

// Retention is how long media is kept; 0: forever. What is safe from quarantine or in it stays in any case.
type Retention struct {
	// LocalUnused and RemoteUnused count from when media was last asked for.
	LocalUnused, RemoteUnused time.Duration
	// LocalAge and RemoteAge count from when it was uploaded or fetched.
	LocalAge, RemoteAge time.Duration
}

const (
	// cleanEvery is how often cleanUp runs, cleanFirst how long after the start: also on a server that never runs for an hour,
	// and not while everybody comes back.
	cleanEvery, cleanFirst = time.Hour, time.Minute
	// previewImages is how long the pictures of previews are kept: clients show previews from their memory.
	previewImages = 30 * 24 * time.Hour
	// batch is how many rows are deleted at once, so that no other write waits for long.
	batch = 100
)

// cleanUpRegularly runs until ctx ends.
func (a *API) cleanUpRegularly(ctx context.Context) {
	timer := time.NewTimer(cleanFirst)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
			if err := a.cleanUp(ctx); err != nil && ctx.Err() == nil {
				a.log.WithError(err).Warn("could not clean up media")
			}
			timer.Reset(cleanEvery)
		}
	}
}

// cleanUp removes what has outlived its time.
func (a *API) cleanUp(ctx context.Context) error {
	now := a.ms()
	before := func(age time.Duration) int64 { return now - age.Milliseconds() }
	rules := []struct {
		on        time.Duration
		condition string
	}{
		{a.Retention.LocalUnused, `origin = $1 AND purpose = 0 AND accessed < $2 AND blob IS NOT NULL`},
		{a.Retention.LocalAge, `origin = $1 AND purpose = 0 AND created < $2 AND blob IS NOT NULL`},
		{a.Retention.RemoteUnused, `origin <> $1 AND accessed < $2`},
		{a.Retention.RemoteAge, `origin <> $1 AND created < $2`},
		{previewImages, `origin = $1 AND purpose = 1 AND created < $2`},
	}
	for _, r := range rules {
		if r.on == 0 {
			continue
		}
		if _, err := a.remove(ctx, `NOT safe AND quarantined IS NULL AND `+r.condition, a.ServerName, before(r.on)); err != nil {
			return err
		}
	}
	if _, err := a.remove(ctx, `blob IS NULL AND expires < $1`, now); err != nil {
		return err
	}
	if err := a.dropUnattached(ctx, before(unattachedFor)); err != nil {
		return err
	}
	err := a.db.Write(ctx, func(tx *storage.Tx) error {
		_, err := tx.Exec(`DELETE FROM media_previews WHERE expires < $1`, now)
		return err
	})
	if err != nil {
		return fmt.Errorf("forget previews: %w", err)
	}
	if err := a.dropUnnamed(ctx); err != nil {
		return err
	}
	return a.dropPartials(ctx)
}

// remove removes the media that a condition tells, batch by batch, and returns what it was.
func (a *API) remove(ctx context.Context, condition string, args ...any) (removed []uri, err error) {
	for {
		var keys []string
		var some []uri
		err := a.db.Write(ctx, func(tx *storage.Tx) error {
			keys, some = nil, nil
			list, err := recordsOf(tx, condition+fmt.Sprintf(` LIMIT %d`, batch), args...)
			if err != nil {
				return err
			}
			for _, r := range list {
				if _, err := tx.Exec(`DELETE FROM media WHERE origin = $1 AND id = $2`, r.origin, r.id); err != nil {
					return err
				}
				if err := unrestrict(tx, r.uri); err != nil {
					return err
				}
				some = append(some, r.uri)
				if r.blob != "" {
					keys = append(keys, r.blob)
				}
			}
			return nil
		})
		if err != nil {
			return removed, fmt.Errorf("remove media: %w", err)
		}
		removed = append(removed, some...)
		if err := a.dropBlobs(ctx, keys); err != nil {
			return removed, err
		}
		if len(some) < batch {
			return removed, nil
		}
	}
}

// dropUnattached removes restricted media that nobody has attached to anything in time.
func (a *API) dropUnattached(ctx context.Context, before int64) error {
	list, err := a.unless(ctx, a.avatars, `origin = $1 AND created < $2 AND NOT safe AND quarantined IS NULL
		AND EXISTS (SELECT 1 FROM media_restricted r WHERE r.origin = media.origin AND r.id = media.id)
		AND NOT EXISTS (SELECT 1 FROM media_attachments t WHERE t.origin = media.origin AND t.id = media.id)`, a.ServerName, before)
	if err == nil {
		_, err = a.removeAll(ctx, list)
	}
	return err
}

// dropUnnamed removes blobs that nothing refers to: somebody ended this process before it could.
func (a *API) dropUnnamed(ctx context.Context) error {
	keys, err := storage.ReadList[string](ctx, a.db, `SELECT key FROM media_blobs b WHERE NOT EXISTS (SELECT 1 FROM media WHERE blob = b.key)
			AND NOT EXISTS (SELECT 1 FROM media_thumbnails WHERE data = b.key AND blob <> b.key) LIMIT 10000`)
	if err != nil {
		return fmt.Errorf("look for blobs without a name: %w", err)
	}
	return a.dropBlobs(ctx, keys)
}

// dropPartials removes what has arrived of uploads that nobody may go on with.
func (a *API) dropPartials(ctx context.Context) error {
	entries, err := os.ReadDir(a.partial.folder)
	if err != nil {
		return fmt.Errorf("read the folder of partial uploads: %w", err)
	}
	for _, e := range entries {
		id := strings.TrimSuffix(e.Name(), ".json")
		rec, err := a.lookUp(ctx, uri{a.ServerName, id})
		if err != nil {
			return err
		}
		if rec == nil || rec.blob != "" {
			if err := a.partial.remove(id); err != nil {
				return err
			}
		}
	}
	return nil
}
