package e2ee

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"

	"github.com/myelin-im/myelin/internal/canonicaljson"
	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/storage"
)

// backupKey is KeyBackupData of the specification.
type backupKey struct {
	FirstMessageIndex *int64          `json:"first_message_index"`
	ForwardedCount    *int64          `json:"forwarded_count"`
	IsVerified        *bool           `json:"is_verified"`
	SessionData       json.RawMessage `json:"session_data"`
}

func (k *backupKey) check() error {
	switch {
	case k.FirstMessageIndex == nil || k.ForwardedCount == nil || k.IsVerified == nil || len(k.SessionData) == 0:
		return mxerr.BadJSON("A key needs first_message_index, forwarded_count, is_verified and session_data")
	case k.SessionData[0] != '{':
		return mxerr.BadJSON("session_data must be an object")
	case len(k.SessionData) > maxSessionData:
		return mxerr.TooLarge("session_data is too large")
	case *k.FirstMessageIndex < 0 || *k.ForwardedCount < 0:
		return mxerr.InvalidParam("A key has a negative number")
	}
	return nil
}

type backupSessions struct {
	Sessions map[string]*backupKey `json:"sessions"`
}

type putKeysRequest struct {
	Version string                     `query:"version" required:"true"`
	Rooms   map[string]*backupSessions `json:"rooms" required:"true"`
}

type putRoomRequest struct {
	Version  string                `query:"version" required:"true"`
	RoomID   string                `path:"roomId"`
	Sessions map[string]*backupKey `json:"sessions" required:"true"`
}

type putSessionRequest struct {
	Version   string `query:"version" required:"true"`
	RoomID    string `path:"roomId"`
	SessionID string `path:"sessionId"`
	backupKey
}

type backupChanged struct {
	Count int64  `json:"count"`
	ETag  string `json:"etag"`
}

// putBackupKeys: PUT /room_keys/keys.
func (a *API) putBackupKeys(ctx context.Context, by *httpapi.Caller, in *putKeysRequest) (*backupChanged, error) {
	return a.backUp(ctx, by.UserID, in.Version, in.Rooms)
}

// putBackupRoom: PUT /room_keys/keys/{roomId}.
func (a *API) putBackupRoom(ctx context.Context, by *httpapi.Caller, in *putRoomRequest) (*backupChanged, error) {
	return a.backUp(ctx, by.UserID, in.Version, map[string]*backupSessions{in.RoomID: {in.Sessions}})
}

// putBackupSession: PUT /room_keys/keys/{roomId}/{sessionId}.
func (a *API) putBackupSession(ctx context.Context, by *httpapi.Caller, in *putSessionRequest) (*backupChanged, error) {
	return a.backUp(ctx, by.UserID, in.Version, map[string]*backupSessions{in.RoomID: {map[string]*backupKey{in.SessionID: &in.backupKey}}})
}

// backUp stores keys. A key that is there is replaced by a better one only: verified before not verified, then the lower
// first_message_index, then the lower forwarded_count.
func (a *API) backUp(ctx context.Context, user, version string, rooms map[string]*backupSessions) (*backupChanged, error) {
	for room, in := range rooms {
		if in == nil || len(room) > maxKeyName {
			return nil, mxerr.BadJSON("A room has no sessions")
		}
		for session, k := range in.Sessions {
			if k == nil || len(session) > maxKeyName {
				return nil, mxerr.BadJSON("A session has no key")
			}
			if err := k.check(); err != nil {
				return nil, err
			}
		}
	}
	var b *backup
	err := a.db.Write(ctx, func(tx *storage.Tx) (err error) {
		if err := tx.Lock("backup " + user); err != nil {
			return err
		}
		if b, err = currentBackup(tx, user, version); err != nil {
			return err
		}
		changed := false
		for room, in := range rooms {
			for session, k := range in.Sessions {
				added, replaced, err := putBackupKey(tx, user, b.version, room, session, k)
				if err != nil {
					return err
				}
				changed = changed || added || replaced
				if added {
					b.keys++
				}
			}
		}
		if b.keys > maxBackupKeys {
			return mxerr.TooLarge("The backup has too many keys")
		}
		return b.save(tx, user, changed)
	})
	if err != nil {
		return nil, fmt.Errorf("back up keys: %w", err)
	}
	return &backupChanged{b.keys, strconv.FormatInt(b.etag, 10)}, nil
}

// save writes the new number of keys, with another etag if something changed.
func (b *backup) save(tx *storage.Tx, user string, changed bool) error {
	if !changed {
		return nil
	}
	b.etag++
	_, err := tx.Exec(`UPDATE key_backups SET etag = $3, keys = $4 WHERE user_id = $1 AND version = $2`, user, b.version, b.etag, b.keys)
	return err
}

func putBackupKey(tx *storage.Tx, user string, version int64, room, session string, k *backupKey) (added, replaced bool, err error) {
	args := []any{user, version, room, session, *k.FirstMessageIndex, *k.ForwardedCount, *k.IsVerified, []byte(k.SessionData)}
	n, err := tx.Exec(`INSERT INTO key_backup_sessions (user_id, version, room_id, session_id, first_message_index, forwarded_count, is_verified, session_data)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT DO NOTHING`, args...)
	if err != nil || n > 0 {
		return n > 0, false, err
	}
	n, err = tx.Exec(`UPDATE key_backup_sessions SET first_message_index = $5, forwarded_count = $6, is_verified = $7, session_data = $8
		WHERE user_id = $1 AND version = $2 AND room_id = $3 AND session_id = $4 AND (
			$7 AND NOT is_verified
			OR $7 = is_verified AND (first_message_index > $5 OR first_message_index = $5 AND forwarded_count > $6))`, args...)
	return false, n > 0, err
}

type getKeysRequest struct {
	Version   string `query:"version" required:"true"`
	RoomID    string `path:"roomId"`
	SessionID string `path:"sessionId"`
}

type backupKeysRequest struct {
	Version string `query:"version" required:"true"`
}

type backupRoomRequest struct {
	Version string `query:"version" required:"true"`
	RoomID  string `path:"roomId"`
}

// keysOfBackup is an answer with many keys, as bytes.
type keysOfBackup []byte

// AppendJSON appends the answer.
func (k keysOfBackup) AppendJSON(b []byte) ([]byte, error) { return append(b, k...), nil }

// eachBackupKey reads keys of a backup: all, or those of a room, or one.
func (a *API) eachBackupKey(ctx context.Context, user string, in *getKeysRequest, fn func(room, session string, key []byte)) error {
	version := parseVersion(in.Version)
	err := a.db.Read(ctx, func(tx *storage.Tx) error {
		if _, err := readBackup(tx, user, &version); err != nil {
			return err
		}
		sql, args := `SELECT room_id, session_id, first_message_index, forwarded_count, is_verified, session_data FROM key_backup_sessions
			WHERE user_id = $1 AND version = $2`, []any{user, version}
		if in.RoomID != "" {
			sql, args = sql+` AND room_id = $3`, append(args, in.RoomID)
		}
		if in.SessionID != "" {
			sql, args = sql+` AND session_id = $4`, append(args, in.SessionID)
		}
		rows := tx.Query(sql+` ORDER BY room_id, session_id`, args...)
		var room, session string
		var first, forwarded int64
		var verified bool
		var data []byte
		for rows.Next() {
			rows.Scan(&room, &session, &first, &forwarded, &verified, &data)
			fn(room, session, fmt.Appendf(nil, `{"first_message_index":%d,"forwarded_count":%d,"is_verified":%t,"session_data":%s}`, first, forwarded, verified, data))
		}
		return rows.Close()
	})
	if err != nil {
		return fmt.Errorf("read keys of a backup: %w", err)
	}
	return nil
}

// getBackupKeys: GET /room_keys/keys.
func (a *API) getBackupKeys(ctx context.Context, by *httpapi.Caller, in *backupKeysRequest) (*keysOfBackup, error) {
	b, last := []byte(`{"rooms":{`), ""
	err := a.eachBackupKey(ctx, by.UserID, &getKeysRequest{Version: in.Version}, func(room, session string, key []byte) {
		switch {
		case last == "":
			b = append(canonicaljson.AppendString(b, room), `:{"sessions":{`...)
		case last != room:
			b = append(canonicaljson.AppendString(append(b, "}},"...), room), `:{"sessions":{`...)
		default:
			b = append(b, ',')
		}
		last = room
		b = append(append(canonicaljson.AppendString(b, session), ':'), key...)
	})
	if err != nil {
		return nil, err
	}
	if last != "" {
		b = append(b, "}}"...)
	}
	out := keysOfBackup(append(b, "}}"...))
	return &out, nil
}

// getBackupRoom: GET /room_keys/keys/{roomId}.
func (a *API) getBackupRoom(ctx context.Context, by *httpapi.Caller, in *backupRoomRequest) (*keysOfBackup, error) {
	b := []byte(`{"sessions":{`)
	empty := len(b)
	err := a.eachBackupKey(ctx, by.UserID, &getKeysRequest{in.Version, in.RoomID, ""}, func(_, session string, key []byte) {
		if len(b) > empty {
			b = append(b, ',')
		}
		b = append(append(canonicaljson.AppendString(b, session), ':'), key...)
	})
	if err != nil {
		return nil, err
	}
	out := keysOfBackup(append(b, "}}"...))
	return &out, nil
}

// getBackupSession: GET /room_keys/keys/{roomId}/{sessionId}.
func (a *API) getBackupSession(ctx context.Context, by *httpapi.Caller, in *getKeysRequest) (*keysOfBackup, error) {
	var out keysOfBackup
	if err := a.eachBackupKey(ctx, by.UserID, in, func(_, _ string, key []byte) { out = key }); err != nil {
		return nil, err
	}
	if out == nil {
		return nil, mxerr.NotFound("There is no such key in the backup")
	}
	return &out, nil
}

func (a *API) deleteBackupKeys(ctx context.Context, by *httpapi.Caller, in *backupKeysRequest) (*backupChanged, error) {
	return a.deleteFromBackup(ctx, by.UserID, &getKeysRequest{Version: in.Version})
}

func (a *API) deleteBackupRoom(ctx context.Context, by *httpapi.Caller, in *backupRoomRequest) (*backupChanged, error) {
	return a.deleteFromBackup(ctx, by.UserID, &getKeysRequest{in.Version, in.RoomID, ""})
}

func (a *API) deleteBackupSession(ctx context.Context, by *httpapi.Caller, in *getKeysRequest) (*backupChanged, error) {
	return a.deleteFromBackup(ctx, by.UserID, in)
}

// deleteFromBackup: DELETE /room_keys/keys and below it.
func (a *API) deleteFromBackup(ctx context.Context, user string, in *getKeysRequest) (*backupChanged, error) {
	var b *backup
	version := parseVersion(in.Version)
	err := a.db.Write(ctx, func(tx *storage.Tx) (err error) {
		if err := tx.Lock("backup " + user); err != nil {
			return err
		}
		if b, err = readBackup(tx, user, &version); err != nil {
			return err
		}
		sql, args := `DELETE FROM key_backup_sessions WHERE user_id = $1 AND version = $2`, []any{user, version}
		if in.RoomID != "" {
			sql, args = sql+` AND room_id = $3`, append(args, in.RoomID)
		}
		if in.SessionID != "" {
			sql, args = sql+` AND session_id = $4`, append(args, in.SessionID)
		}
		n, err := tx.Exec(sql, args...)
		if err != nil {
			return err
		}
		b.keys -= n
		return b.save(tx, user, n > 0)
	})
	if err != nil {
		return nil, fmt.Errorf("delete keys of a backup: %w", err)
	}
	return &backupChanged{b.keys, strconv.FormatInt(b.etag, 10)}, nil
}
