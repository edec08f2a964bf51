package pushers

import (
	"context"
	"embed"
	"encoding/json"
	"fmt"

	"github.com/myelin-im/myelin/storage"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Schema is the part of the database that belongs to pushers.
var Schema = storage.Schema{Feature: "pushers", FS: migrations}

// pusher is a row of the table.
type pusher struct {
	User              string          `json:"-"`
	AppID             string          `json:"app_id"`
	Pushkey           string          `json:"pushkey"`
	Kind              string          `json:"kind"`
	AppDisplayName    string          `json:"app_display_name"`
	DeviceDisplayName string          `json:"device_display_name"`
	ProfileTag        string          `json:"profile_tag,omitempty"`
	Lang              string          `json:"lang"`
	Data              json.RawMessage `json:"data"`
	DeviceID          string          `json:"-"`
	SetTS             int64           `json:"-"`
	Told              int64           `json:"-"`
	FailingSince      int64           `json:"-"`
	Badge             int64           `json:"-"` // the number that the gateway was told last; -1: none
}

// key names a pusher of a user.
type key struct{ app, pushkey string }

func (p *pusher) key() key { return key{p.AppID, p.Pushkey} }

const columns = `user_id, app_id, pushkey, kind, app_display_name, device_display_name, profile_tag, lang, data, device_id, set_ts, told, failing_since, badge`

func read(tx *storage.Tx, sql string, args ...any) (list []pusher, err error) {
	rows := tx.Query(sql, args...)
	for rows.Next() {
		var p pusher
		var data []byte
		rows.Scan(&p.User, &p.AppID, &p.Pushkey, &p.Kind, &p.AppDisplayName, &p.DeviceDisplayName, &p.ProfileTag, &p.Lang, &data,
			&p.DeviceID, &p.SetTS, &p.Told, &p.FailingSince, &p.Badge)
		p.Data = append(json.RawMessage(nil), data...)
		list = append(list, p)
	}
	return list, rows.Close()
}

// ofUser reads the pushers of a user, the oldest first.
func ofUser(tx *storage.Tx, user string) ([]pusher, error) {
	return read(tx, `SELECT `+columns+` FROM pushers WHERE user_id = $1 ORDER BY set_ts, app_id, pushkey`, user)
}

// put stores a pusher as new or in place of its predecessor, which hands on how far its gateway was told.
func put(tx *storage.Tx, p *pusher) error {
	told, err := tx.Position()
	if err != nil {
		return fmt.Errorf("take a position: %w", err)
	}
	_, err = tx.Exec(`INSERT INTO pushers (`+columns+`) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, 0, -1)
		ON CONFLICT (user_id, app_id, pushkey) DO UPDATE SET kind = excluded.kind, app_display_name = excluded.app_display_name,
			device_display_name = excluded.device_display_name, profile_tag = excluded.profile_tag, lang = excluded.lang,
			data = excluded.data, device_id = excluded.device_id, set_ts = excluded.set_ts, failing_since = 0`,
		p.User, p.AppID, p.Pushkey, p.Kind, p.AppDisplayName, p.DeviceDisplayName, p.ProfileTag, p.Lang, []byte(p.Data), p.DeviceID, p.SetTS, told)
	if err != nil {
		return fmt.Errorf("store pusher: %w", err)
	}
	return announce(tx, p.User)
}

// announce tells those who follow the log that a user's pushers have changed.
func announce(tx *storage.Tx, user string) error {
	if _, err := tx.Position(); err != nil {
		return fmt.Errorf("take a position: %w", err)
	}
	tx.Notice(storage.Notice{Kind: storage.Pushers, User: user})
	return nil
}

// remove deletes a user's pusher and tells whether there was one.
func remove(tx *storage.Tx, user string, k key) (bool, error) {
	n, err := tx.Exec(`DELETE FROM pushers WHERE user_id = $1 AND app_id = $2 AND pushkey = $3`, user, k.app, k.pushkey)
	if err != nil {
		return false, fmt.Errorf("delete pusher: %w", err)
	}
	if n == 0 {
		return false, nil
	}
	return true, announce(tx, user)
}

// removeOthers deletes the pushers of other users with the same key: a device has changed hands.
func removeOthers(tx *storage.Tx, user string, k key) error {
	others, err := storage.List[string](tx, `DELETE FROM pushers WHERE app_id = $1 AND pushkey = $2 AND user_id <> $3 RETURNING user_id`, k.app, k.pushkey, user)
	if err != nil {
		return fmt.Errorf("delete pushers of other users: %w", err)
	}
	for _, other := range others {
		if err := announce(tx, other); err != nil {
			return err
		}
	}
	return nil
}

// removeDevices deletes the pushers that devices have set; without devices, all of the user's.
func removeDevices(tx *storage.Tx, user string, devices []string) error {
	sql, args := `DELETE FROM pushers WHERE user_id = $1`, []any{user}
	if devices != nil {
		sql += ` AND device_id IN ` + storage.In(len(devices), 2)
		for _, d := range devices {
			args = append(args, d)
		}
	}
	n, err := tx.Exec(sql, args...)
	if err != nil {
		return fmt.Errorf("delete pushers of %s: %w", user, err)
	}
	if n == 0 {
		return nil
	}
	return announce(tx, user)
}

// savePlace writes down how far gateways were told, and which numbers.
func (a *API) savePlace(ctx context.Context, places []pusher) error {
	err := a.db.Write(ctx, func(tx *storage.Tx) error {
		for i := range places {
			p := &places[i]
			if _, err := tx.Exec(`UPDATE pushers SET told = $4, failing_since = $5, badge = $6 WHERE user_id = $1 AND app_id = $2 AND pushkey = $3 AND told <= $4`,
				p.User, p.AppID, p.Pushkey, p.Told, p.FailingSince, p.Badge); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("write down how far push gateways were told: %w", err)
	}
	return nil
}
