package e2ee

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/tidwall/gjson"

	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/storage"
)

// sharedWithAny tells whether a remote user is in a room with any local user, leaving one room aside.
func (a *API) sharedWithAny(ctx context.Context, user string, aside int64) (bool, error) {
	shared, err := a.together(ctx, []string{user}, func(m roomserver.RoomMembership) bool { return m.Room != aside })
	return shared[user], err
}

// current finds those remote users whose stored keys are the current ones: a room has been shared with them since these
// were read. The follower marks others as stale, but somebody may ask before it does.
func (a *API) current(ctx context.Context, known map[string]*identity) (map[string]bool, error) {
	var fresh []string
	for user, i := range known {
		if i.fresh && !a.isLocal(user) {
			fresh = append(fresh, user)
		}
	}
	return a.together(ctx, fresh, func(m roomserver.RoomMembership) bool { return m.Pos <= known[m.User].since })
}

// together finds those remote users who are in a room with any local user, as far as their presence in it counts.
func (a *API) together(ctx context.Context, users []string, counts func(m roomserver.RoomMembership) bool) (map[string]bool, error) {
	if len(users) == 0 {
		return nil, nil
	}
	in := map[int64][]string{}
	err := a.rooms.MembershipsOf(ctx, users, func(m roomserver.RoomMembership) {
		if m.Membership == roomserver.Join && counts(m) {
			in[m.Room] = append(in[m.Room], m.User)
		}
	})
	if err != nil {
		return nil, err
	}
	found := map[string]bool{}
	for nid, users := range in {
		if !slices.ContainsFunc(users, func(user string) bool { return !found[user] }) {
			continue
		}
		room, err := a.rooms.RoomByNID(ctx, nid)
		if errors.Is(err, roomserver.ErrUnknownRoom) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if len(room.LocalMembers(nil)) == 0 {
			continue
		}
		for _, user := range users {
			found[user] = true
		}
	}
	return found, nil
}

// fetch is a request for a user's devices under way, for all who want its answer.
type fetch struct {
	done     chan struct{}
	identity *identity
	err      error
}

// fetchOnce gets the devices of a user with whom a room is shared, together with others who want them. Whoever began may
// have less patience than the others; then one of them tries again.
func (a *API) fetchOnce(ctx context.Context, server, user string) (*identity, error) {
	for {
		f := &fetch{done: make(chan struct{})}
		other, under := a.fetches.LoadOrStore(user, f)
		if !under {
			return a.fetchForAll(ctx, server, user, f)
		}
		f = other.(*fetch)
		select {
		case <-f.done:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if ended := errors.Is(f.err, context.Canceled) || errors.Is(f.err, context.DeadlineExceeded); !ended || ctx.Err() != nil {
			return f.identity, f.err
		}
	}
}

// fetchForAll gets the devices of a user and gives them to all who wait for f.
func (a *API) fetchForAll(ctx context.Context, server, user string, f *fetch) (*identity, error) {
	defer func() {
		a.fetches.Delete(user)
		close(f.done)
	}()
	f.identity, f.err = a.fetch(ctx, server, user)
	return f.identity, f.err
}

// fetch gets a user's devices from their server and stores them, so that from now on changes keep them current.
func (a *API) fetch(ctx context.Context, server, user string) (*identity, error) {
	since := a.db.Head()
	var mark int64
	known, err := a.db.Get(ctx, `SELECT mark FROM remote_device_lists WHERE user_id = $1`, []any{user}, &mark)
	if err != nil {
		return nil, fmt.Errorf("look up devices of %s: %w", user, err)
	}
	i, err := a.askDevices(ctx, server, user)
	if err != nil {
		if !known { // the client that asked is to hear when their server tells of them
			err = errors.Join(err, a.db.Write(context.WithoutCancel(ctx), func(tx *storage.Tx) error { return markStale(tx, user) }))
		}
		return nil, err
	}
	i.since = since
	return i, a.store(context.WithoutCancel(ctx), user, i, mark)
}

// askDevices asks a server for a user's devices.
func (a *API) askDevices(ctx context.Context, server, user string) (*identity, error) {
	answer, err := a.remote.UserDevices(ctx, server, user)
	if err != nil {
		return nil, fmt.Errorf("devices of %s: %w", user, err)
	}
	return parseDevices(user, answer)
}

// parseDevices reads an answer of /user/devices.
func parseDevices(user string, answer json.RawMessage) (*identity, error) {
	bad := errors.New("the answer about devices is not as it should be")
	all := gjson.ParseBytes(answer)
	stream := all.Get("stream_id")
	if all.Get("user_id").Str != user || stream.Type != gjson.Number || !all.Get("devices").IsArray() {
		return nil, bad
	}
	i := &identity{streamID: stream.Int(), fresh: true}
	seen := map[string]bool{}
	for _, d := range all.Get("devices").Array() {
		id := d.Get("device_id").Str
		device, ok := remoteDevice(user, id, d.Get("keys"), d.Get("device_display_name").Str)
		if ok && !seen[id] && len(i.devices) < maxRemoteDevices {
			seen[id] = true
			i.devices = append(i.devices, device)
		}
	}
	if key, err := checkCrossSigningKey([]byte(all.Get("master_key").Raw), user, usageMaster); err == nil {
		i.master = key.content
	}
	if key, err := checkCrossSigningKey([]byte(all.Get("self_signing_key").Raw), user, usageSelfSigning); err == nil {
		i.selfSigning = key.content
	}
	return i, nil
}

// store replaces what is known of a remote user. It counts as current unless its list was found to be out of date since
// mark, which is while the answer was under way.
func (a *API) store(ctx context.Context, user string, i *identity, mark int64) error {
	err := a.db.Write(ctx, func(tx *storage.Tx) error {
		var now int64
		if _, err := tx.Get(`SELECT mark FROM remote_device_lists WHERE user_id = $1`, []any{user}, &now); err != nil || now != mark {
			return err
		}
		if err := dropRemote(tx, user); err != nil {
			return err
		}
		for _, d := range i.devices {
			if err := putRemoteDevice(tx, user, &d); err != nil {
				return err
			}
		}
		for usage, key := range map[string][]byte{usageMaster: i.master, usageSelfSigning: i.selfSigning} {
			if key == nil {
				continue
			}
			if err := putCrossSigningKey(tx, user, crossSigningKey{usage, publicKey(key), key}); err != nil {
				return err
			}
		}
		_, err := tx.Exec(`INSERT INTO remote_device_lists (user_id, stream_id, fresh, mark, since) VALUES ($1, $2, $3, $4, $5)
			ON CONFLICT (user_id) DO UPDATE SET stream_id = excluded.stream_id, fresh = excluded.fresh, since = excluded.since`,
			user, i.streamID, true, mark, i.since)
		if err != nil {
			return err
		}
		return noteStored(tx, user)
	})
	if err != nil {
		return fmt.Errorf("store devices of %s: %w", user, err)
	}
	return nil
}

// noteStored makes every node forget what it has in memory of a remote user.
func noteStored(tx *storage.Tx, user string) error {
	pos, err := tx.Position()
	if err == nil {
		tx.Notice(storage.Notice{Pos: pos, Kind: storage.DeviceList, User: user})
	}
	return err
}

// dropRemote deletes the stored keys of a remote user.
func dropRemote(tx *storage.Tx, user string) error {
	for _, table := range []string{"device_keys", "cross_signing_keys"} {
		if _, err := tx.Exec(`DELETE FROM `+table+` WHERE user_id = $1`, user); err != nil {
			return err
		}
	}
	return nil
}

func putRemoteDevice(tx *storage.Tx, user string, d *deviceKeys) error {
	_, err := tx.Exec(`INSERT INTO device_keys (user_id, device_id, content, display_name) VALUES ($1, $2, $3, $4)
		ON CONFLICT (user_id, device_id) DO UPDATE SET content = excluded.content, display_name = excluded.display_name`,
		user, d.id, d.keys, d.name)
	return err
}

// markStale says that the stored keys of a remote user may be out of date.
func markStale(tx *storage.Tx, user string) error {
	pos, err := tx.Position()
	if err != nil {
		return err
	}
	_, err = tx.Exec(`INSERT INTO remote_device_lists (user_id, stream_id, fresh, mark) VALUES ($1, $2, $3, $4)
		ON CONFLICT (user_id) DO UPDATE SET fresh = excluded.fresh, mark = excluded.mark`, user, int64(0), false, pos)
	if err != nil {
		return err
	}
	return noteStored(tx, user)
}
