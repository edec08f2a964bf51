package accounts

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"unicode/utf8"

	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/storage"
)

const (
	// maxRemoteFields bounds the profile fields of users of other servers that are kept; those that have been as they are
	// for longest go first.
	maxRemoteFields = 10_000
	// maxRemoteField bounds the bytes of one of them, maxFieldsOfUser how many a user has.
	maxRemoteField  = 4 << 10
	maxFieldsOfUser = 50
)

// remoteProfile asks for the profile of a user of another server, and keeps what it says for those to whom changes of
// profiles are told.
func (a *API) remoteProfile(ctx context.Context, userID string) (*Profile, error) {
	fields, err := a.profile(ctx, userID)
	if said := mxerr.As(err); err != nil && (said == nil || said.Code != "M_NOT_FOUND") {
		return nil, err
	}
	fields = legible(fields)
	if problem := a.keepRemote(ctx, userID, fields); problem != nil && ctx.Err() == nil {
		a.log.WithError(problem).WithField("user_id", userID).Warn("The profile of a user of another server could not be kept")
	}
	return &Profile{fields}, err
}

// legible is a profile without the fields that would keep clients from reading the rest.
func legible(fields map[string]json.RawMessage) map[string]json.RawMessage {
	out := make(map[string]json.RawMessage, len(fields))
	for name, value := range fields {
		if utf8.Valid(value) && httpapi.CheckLegible(value) == nil {
			out[name] = value
		}
	}
	return out
}

// keepRemote keeps what the profile of a user of another server is now, if somebody here shares a room with them.
func (a *API) keepRemote(ctx context.Context, userID string, fields map[string]json.RawMessage) error {
	var changes map[string]json.RawMessage
	err := a.db.Read(ctx, func(tx *storage.Tx) (err error) {
		changes, err = remoteChanges(tx, userID, fields)
		return err
	})
	if err != nil || len(changes) == 0 {
		return err
	}
	if known, err := a.rooms.Known(ctx, userID); err != nil || !known {
		return err
	}
	err = a.db.Write(ctx, func(tx *storage.Tx) error {
		changes, err := remoteChanges(tx, userID, fields)
		if err != nil || len(changes) == 0 {
			return err
		}
		return writeRemote(tx, userID, changes)
	})
	if err != nil {
		return fmt.Errorf("keep profile: %w", err)
	}
	return nil
}

// remoteChanges compares a profile with what is kept of it. A nil value stands for a field that is gone.
func remoteChanges(tx *storage.Tx, userID string, fields map[string]json.RawMessage) (map[string]json.RawMessage, error) {
	changes := map[string]json.RawMessage{}
	for name, value := range fields {
		if name != fieldDisplayName && name != fieldAvatarURL && len(value) <= maxRemoteField && checkField(name) == nil {
			changes[name] = value
		}
	}
	if len(changes) > maxFieldsOfUser {
		clear(changes)
	}
	rows := tx.Query(`SELECT field, value FROM remote_profiles WHERE user_id = $1`, userID)
	for rows.Next() {
		var name string
		var value json.RawMessage
		rows.Scan(&name, (*[]byte)(&value))
		switch now, ok := changes[name]; {
		case ok && bytes.Equal(now, value):
			delete(changes, name)
		case !ok && value != nil:
			changes[name] = nil
		}
	}
	return changes, rows.Close()
}

// writeRemote writes changed fields and forgets the oldest of all that are kept, if they are too many.
func writeRemote(tx *storage.Tx, userID string, changes map[string]json.RawMessage) error {
	pos, err := tx.Position()
	if err != nil {
		return err
	}
	tx.Notice(storage.Notice{Kind: storage.Profile, User: userID})
	for name, value := range changes {
		_, err := tx.Exec(`INSERT INTO remote_profiles (user_id, field, value, pos) VALUES ($1, $2, $3, $4)
			ON CONFLICT (user_id, field) DO UPDATE SET value = excluded.value, pos = excluded.pos`, userID, name, []byte(value), pos)
		if err != nil {
			return err
		}
	}
	_, err = tx.Exec(`DELETE FROM remote_profiles WHERE pos <= (SELECT pos FROM remote_profiles ORDER BY pos DESC LIMIT 1 OFFSET $1)`, int64(maxRemoteFields))
	return err
}
