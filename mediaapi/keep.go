package mediaapi

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/mediaapi/blob"
	"github.com/myelin-im/myelin/storage"
)

var (
	errBlocked = mxerr.Forbidden("This content is not allowed here")
	// errBlobGone says that a blob which was there a moment ago has been removed.
	errBlobGone = errors.New("the blob is gone")
	// errFull has clients come again when somebody may have made space.
	errFull = &mxerr.Error{Status: http.StatusServiceUnavailable, Code: "M_UNKNOWN", Text: "The server has no space for files at the moment", RetryAfter: time.Minute}
)

// unlessFull turns an error of a disk without space into what clients are told of it.
func unlessFull(err error) error {
	if blob.IsFull(err) {
		return errFull.With(err)
	}
	return err
}

// keep makes the content of a spool durable, once for equal content, and lets write refer to its key in the same
// transaction.
func (a *API) keep(ctx context.Context, s *blob.Spool, write func(tx *storage.Tx, key string) error) error {
	hash := s.Hash()
	var known, blocked bool
	err := a.db.Read(ctx, func(tx *storage.Tx) (err error) {
		if known, err = tx.Get(`SELECT key FROM media_blobs WHERE hash = $1`, []any{hash}, new(string)); err == nil {
			blocked, err = isBlocked(tx, hash)
		}
		return err
	})
	if err != nil {
		return err
	}
	if blocked {
		return errBlocked
	}
	if known {
		if _, err = a.refer(ctx, hash, "", s.Size(), write); !errors.Is(err, errBlobGone) {
			return err
		}
	}
	if err := a.scan(ctx, s); err != nil {
		return err
	}
	if err := s.Seal(); err != nil {
		return unlessFull(err)
	}
	if err := a.store.Put(ctx, s); err != nil {
		// It may have been stored all the same.
		return errors.Join(unlessFull(err), a.forgetUnlessKept(s.Key()))
	}
	stored, err := a.refer(ctx, hash, s.Key(), s.Size(), write)
	if err != nil || stored != s.Key() {
		// Whether the row was written may be unknown, or somebody else has stored the same at the same time: what
		// nothing refers to goes.
		return errors.Join(err, a.forgetUnlessKept(s.Key()))
	}
	return nil
}

// refer runs write with the key under which content is stored: the one that is known, or else the given one.
func (a *API) refer(ctx context.Context, hash []byte, key string, size int64, write func(tx *storage.Tx, key string) error) (stored string, err error) {
	err = a.db.Write(context.WithoutCancel(ctx), func(tx *storage.Tx) error {
		if err := lockBlob(tx, hash); err != nil {
			return err
		}
		found, err := tx.Get(`SELECT key FROM media_blobs WHERE hash = $1`, []any{hash}, &stored)
		switch {
		case err != nil:
			return err
		case !found && key == "":
			return errBlobGone
		case !found:
			stored = key
			if _, err := tx.Exec(`INSERT INTO media_blobs (key, hash, size) VALUES ($1, $2, $3)`, key, hash, size); err != nil {
				return err
			}
		}
		return write(tx, stored)
	})
	return stored, err
}

// lockBlob keeps other nodes from removing or adding the same content.
func lockBlob(tx *storage.Tx, hash []byte) error {
	return tx.Lock("media " + string(hash))
}

// forgetUnlessKept removes a blob from the store that no row knows.
func (a *API) forgetUnlessKept(key string) error {
	var kept bool
	ctx := context.Background()
	err := a.db.Read(ctx, func(tx *storage.Tx) (err error) {
		kept, err = tx.Get(`SELECT key FROM media_blobs WHERE key = $1`, []any{key}, new(string))
		return err
	})
	if err != nil || kept {
		return err
	}
	return a.store.Remove(ctx, key)
}

// dropBlobs removes those of some blobs that nothing refers to any more, with their thumbnails.
func (a *API) dropBlobs(ctx context.Context, keys []string) error {
	for len(keys) > 0 {
		key := keys[0]
		keys = keys[1:]
		var gone bool
		var thumbnails []string
		err := a.db.Write(ctx, func(tx *storage.Tx) (err error) {
			gone, thumbnails = false, nil
			if err = lockBlob(tx, hashOf(key)); err != nil {
				return err
			}
			n, err := tx.Exec(`DELETE FROM media_blobs WHERE key = $1 AND NOT EXISTS (SELECT 1 FROM media WHERE blob = $1)
				AND NOT EXISTS (SELECT 1 FROM media_thumbnails WHERE data = $1 AND blob <> $1)`, key)
			if gone = n > 0; !gone || err != nil {
				return err
			}
			rows := tx.Query(`DELETE FROM media_thumbnails WHERE blob = $1 RETURNING data`, key)
			for rows.Next() {
				var data string
				rows.Scan(&data)
				if data != key { // small pictures are thumbnails of themselves
					thumbnails = append(thumbnails, data)
				}
			}
			return rows.Close()
		})
		if err != nil {
			return fmt.Errorf("remove a blob: %w", err)
		}
		if !gone {
			continue
		}
		if err := a.store.Remove(ctx, key); err != nil {
			return err
		}
		keys = append(keys, thumbnails...)
	}
	return nil
}

// isBlocked tells whether content may be neither stored nor served.
func isBlocked(tx *storage.Tx, hash []byte) (bool, error) {
	return tx.Get(`SELECT at FROM media_blocked WHERE hash = $1`, []any{hash}, new(int64))
}
