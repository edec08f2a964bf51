package e2ee

import (
	"context"
	"errors"
	"fmt"

	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/storage"
)

// maxPostponed bounds the remote users whose changes wait until it is known who is in the rooms that were just entered.
const maxPostponed = 20_000

// postpone notes a change of a remote user of whom it is not known whether a room is shared with them, because a room of
// their server was entered without its members (MSC3902).
func (a *API) postpone(ctx context.Context, user string) error {
	err := a.db.Write(ctx, func(tx *storage.Tx) error {
		var n int64
		if _, err := tx.Get(`SELECT count(*) FROM postponed_device_lists`, nil, &n); err != nil || n >= maxPostponed {
			return err
		}
		_, err := tx.Exec(`INSERT INTO postponed_device_lists (user_id) VALUES ($1) ON CONFLICT DO NOTHING`, user)
		return err
	})
	if err != nil {
		return fmt.Errorf("postpone a change of devices of %s: %w", user, err)
	}
	if shared, err := a.sharedWithAny(ctx, user, 0); err != nil || !shared {
		return err
	}
	return a.takeUp(ctx, []string{user}) // the members have become known meanwhile
}

// takeUp applies what was postponed of users with whom a room is shared after all.
func (a *API) takeUp(ctx context.Context, users []string) error {
	for _, user := range users {
		err := a.db.Write(ctx, func(tx *storage.Tx) error {
			n, err := tx.Exec(`DELETE FROM postponed_device_lists WHERE user_id = $1`, user)
			if err != nil || n == 0 {
				return err
			}
			if err := markStale(tx, user); err != nil {
				return err
			}
			return noteChange(tx, user)
		})
		if err != nil {
			return fmt.Errorf("take up a change of devices of %s: %w", user, err)
		}
	}
	return nil
}

// MembersKnown takes note that all members of a room are known that was entered without them: servers that were in it
// without our knowing hear of local users' devices what they missed, and clients hear of the changes of remote users that
// waited for it.
func (a *API) MembersKnown(ctx context.Context, c roomserver.Completion) error {
	room, err := a.rooms.Room(ctx, c.RoomID)
	if errors.Is(err, roomserver.ErrUnknownRoom) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := a.takeUpIn(ctx, room); err != nil {
		return err
	}
	if a.remote == nil {
		return nil
	}
	for _, user := range room.LocalMembers(nil) {
		if err := a.makeUp(ctx, user, c); err != nil {
			return err
		}
	}
	return nil
}

// takeUpIn takes up what was postponed of the members of a room, and forgets all of it when no room is left whose members
// are not known.
func (a *API) takeUpIn(ctx context.Context, room *roomserver.Room) error {
	users, err := storage.ReadList[string](ctx, a.db, `SELECT user_id FROM postponed_device_lists`)
	if err != nil {
		return fmt.Errorf("postponed changes of devices: %w", err)
	}
	var here []string
	err = a.rooms.MembershipsOf(ctx, users, func(m roomserver.RoomMembership) {
		if m.Room == room.NID && m.Membership == roomserver.Join {
			here = append(here, m.User)
		}
	})
	if err == nil {
		err = a.takeUp(ctx, here)
	}
	if err != nil || len(users) == len(here) || len(a.rooms.PartialRooms()) > 0 {
		return err
	}
	err = a.db.Write(ctx, func(tx *storage.Tx) error {
		_, err := tx.Exec(`DELETE FROM postponed_device_lists`)
		return err
	})
	if err != nil {
		return fmt.Errorf("forget postponed changes of devices: %w", err)
	}
	return nil
}

// makeUp tells the servers that were in a room since it was entered of a local user's devices, as far as they have not heard
// of them as they are now.
func (a *API) makeUp(ctx context.Context, user string, c roomserver.Completion) error {
	var changed int64
	sent := map[string]int64{}
	var devices []string
	keyless := false
	err := a.db.Read(ctx, func(tx *storage.Tx) error {
		clear(sent)
		if _, err := tx.Get(`SELECT pos FROM device_list_changes WHERE user_id = $1`, []any{user}, &changed); err != nil {
			return err
		}
		rows := tx.Query(`SELECT destination, stream_id FROM device_lists_sent WHERE user_id = $1`, user)
		var server string
		var stream int64
		for rows.Next() {
			rows.Scan(&server, &stream)
			sent[server] = stream
		}
		if err := rows.Close(); err != nil {
			return err
		}
		identity, err := localIdentity(tx, user)
		if err != nil {
			return err
		}
		devices, keyless = namesOf(identity), identity.keyless()
		return nil
	})
	if err != nil {
		return fmt.Errorf("what servers know of %s: %w", user, err)
	}
	var behind, strangers []string
	for _, server := range c.Servers {
		stream, known := sent[server]
		switch {
		case server == a.rooms.Name() || known && stream >= changed*streamsPerPosition:
		case changed > c.Since:
			behind = append(behind, server)
		case !known && !keyless:
			strangers = append(strangers, server)
		}
	}
	if err := a.introduce(ctx, user, strangers); err != nil || len(behind) == 0 || len(devices) == 0 {
		return err
	}
	return a.tellServers(ctx, &news{pos: changed, user: user, devices: devices}, behind)
}
