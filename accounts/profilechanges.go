package accounts

import (
	"encoding/json"

	"github.com/myelin-im/myelin/storage"
)

// noteProfileChange gives the change of a field a position in the log.
func noteProfileChange(tx *storage.Tx, userID, field string) error {
	pos, err := tx.Position()
	if err != nil {
		return err
	}
	tx.Notice(storage.Notice{Kind: storage.Profile, User: userID})
	_, err = tx.Exec(`INSERT INTO profile_changes (user_id, field, pos) VALUES ($1, $2, $3) ON CONFLICT (user_id, field) DO UPDATE SET pos = excluded.pos`,
		userID, field, pos)
	return err
}

// noteProfileEnd is noteProfileChange for all fields of a profile that is deleted.
func noteProfileEnd(tx *storage.Tx, userID string) error {
	pos, err := tx.Position()
	if err != nil {
		return err
	}
	tx.Notice(storage.Notice{Kind: storage.Profile, User: userID})
	_, err = tx.Exec(`UPDATE profile_changes SET pos = $1 WHERE user_id = $2`, pos, userID)
	return err
}

// ChangedField is a profile field that changed.
type ChangedField struct {
	UserID, Field string
	// Value is what it is now, as JSON; nil if it was deleted.
	Value json.RawMessage
	pos   int64
}

// profilePage is how many changes of profiles are read at a time.
const profilePage = 1000

// ProfileChanges calls fn for each profile field that changed last at a position in (after, upTo], in the order of the
// changes: all fields of local users, and those of users of other servers that memberships do not tell, as far as they
// are known.
func ProfileChanges(tx *storage.Tx, after, upTo int64, fn func(*ChangedField)) error {
	last := ChangedField{pos: after + 1} // an empty user id comes before all others
	for {
		rows := tx.Query(`SELECT c.user_id, c.field, p.value, c.pos FROM profile_changes c
			LEFT JOIN profiles p ON p.user_id = c.user_id AND p.field = c.field
			WHERE (c.pos, c.user_id, c.field) > ($1, $2, $3) AND c.pos <= $4
			UNION ALL SELECT r.user_id, r.field, r.value, r.pos FROM remote_profiles r
			WHERE (r.pos, r.user_id, r.field) > ($1, $2, $3) AND r.pos <= $4
			ORDER BY 4, 1, 2 LIMIT $5`,
			last.pos, last.UserID, last.Field, upTo, int64(profilePage))
		n := 0
		for rows.Next() {
			var c ChangedField
			rows.Scan(&c.UserID, &c.Field, (*[]byte)(&c.Value), &c.pos)
			fn(&c)
			last = c
			n++
		}
		if err := rows.Close(); err != nil || n < profilePage {
			return err
		}
	}
}

// EachProfile calls fn for the profile fields of users, with those of users of other servers as ProfileChanges tells them.
func EachProfile(tx *storage.Tx, users []string, fn func(userID, field string, value json.RawMessage)) error {
	const batch = 64
	for len(users) > 0 {
		args := make([]any, batch)
		for i := range args {
			args[i] = users[min(i, len(users)-1)]
		}
		users = users[min(batch, len(users)):]
		in := storage.In(batch, 1)
		rows := tx.Query(`SELECT user_id, field, value FROM profiles WHERE user_id IN `+in+`
			UNION ALL SELECT user_id, field, value FROM remote_profiles WHERE value IS NOT NULL AND user_id IN `+in, args...)
		for rows.Next() {
			var user, field string
			var value json.RawMessage
			rows.Scan(&user, &field, &value)
			fn(user, field, value)
		}
		if err := rows.Close(); err != nil {
			return err
		}
	}
	return nil
}
