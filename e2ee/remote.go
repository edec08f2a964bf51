package e2ee

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/tidwall/gjson"

	"github.com/myelin-im/myelin/internal/canonicaljson"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/storage"
)

const (
	// usualPatience is how long other servers are waited for, maxPatience for how long a client may ask to.
	usualPatience = 10 * time.Second
	maxPatience   = 30 * time.Second
	// maxServersAtOnce bounds the servers that one request asks at the same time.
	maxServersAtOnce = 32
	// maxFollowed is up to how many of a server's users a query asks for one by one, so that their lists are known from
	// then on; more are asked for together, without being remembered.
	maxFollowed = 20
	// maxFetches bounds the users of one server that one request asks for at the same time.
	maxFetches = 4
	// maxRemoteDevices bounds the devices of a remote user.
	maxRemoteDevices = 1000
)

// patience is how long a request waits for other servers; timeout is what the client asked for, in milliseconds.
func patience(timeout *int64) time.Duration {
	if timeout == nil || *timeout <= 0 {
		return usualPatience
	}
	return min(time.Duration(*timeout)*time.Millisecond, maxPatience)
}

// serverAnswer is what came of asking a server.
type serverAnswer struct {
	server string
	body   json.RawMessage
	err    error
}

var errNoRemote = errors.New("there are no other servers")

// askServers asks servers at the same time, each what is in wanted for it. Every one has an answer or an error when it
// returns; who is slow fails.
func (a *API) askServers(ctx context.Context, patience time.Duration, wanted map[string]wantedKeys,
	ask func(ctx context.Context, server string, wanted wantedKeys) (json.RawMessage, error)) []serverAnswer {
	servers := make([]string, 0, len(wanted))
	for server := range wanted {
		servers = append(servers, server)
	}
	answers := make([]serverAnswer, len(servers))
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	inParallel(len(servers), maxServersAtOnce, func(i int) {
		answers[i].server = servers[i]
		if a.remote == nil {
			answers[i].err = errNoRemote
			return
		}
		answers[i].body, answers[i].err = ask(ctx, servers[i], wanted[servers[i]])
	})
	return answers
}

// inParallel calls fn with 0 to n-1, at most limit at the same time, and returns when all are done.
func inParallel(n, limit int, fn func(i int)) {
	var group sync.WaitGroup
	places := make(chan struct{}, limit)
	for i := range n {
		places <- struct{}{}
		group.Go(func() {
			defer func() { <-places }()
			fn(i)
		})
	}
	group.Wait()
}

// failure is what a client is told of a server that could not be asked.
func failure(err error) json.RawMessage {
	e := map[string]any{"errcode": "M_UNKNOWN", "error": "The server did not answer as it should"}
	if known := mxerr.As(err); known != nil && known.Code != "" {
		e["errcode"], e["error"], e["status"] = known.Code, known.Text, known.Status
	}
	switch {
	case errors.Is(err, errNoRemote), errors.Is(err, context.DeadlineExceeded):
		e["status"], e["error"] = 503, "The server could not be reached"
	case e["status"] == nil:
		e["status"] = 502
	}
	raw, err := json.Marshal(e)
	if err != nil {
		return json.RawMessage(`{}`)
	}
	return raw
}

// queryRemote asks other servers for keys and adds what they say, or that they failed.
func (a *API) queryRemote(ctx context.Context, patience time.Duration, wanted map[string]queriedDevices, out *keysAnswer) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	servers := make([]string, 0, len(wanted))
	for server := range wanted {
		servers = append(servers, server)
	}
	var mu sync.Mutex // guards out
	inParallel(len(servers), maxServersAtOnce, func(i int) {
		server := servers[i]
		found, err := a.queryServer(ctx, server, wanted[server])
		mu.Lock()
		defer mu.Unlock()
		if err != nil {
			a.log.WithError(err).WithField("server", server).Debug("keys of another server's users could not be had")
			out.failures[server] = failure(err)
		}
		for user, i := range found {
			out.add(user, i, wanted[server][user])
		}
	})
}

// queryServer finds the identities of users of another server. What it found counts also with an error.
func (a *API) queryServer(ctx context.Context, server string, wanted queriedDevices) (map[string]*identity, error) {
	if a.remote == nil {
		return nil, errNoRemote
	}
	followed, rest, loose, err := a.whoToFollow(ctx, wanted)
	if err != nil {
		return nil, err
	}
	found := make(map[string]*identity, len(wanted))
	identities, errs := make([]*identity, len(followed)), make([]error, len(followed))
	inParallel(len(followed), maxFetches, func(i int) {
		identities[i], errs[i] = a.fetchOnce(ctx, server, followed[i])
	})
	for i, user := range followed {
		if identities[i] != nil {
			found[user] = identities[i]
		}
	}
	if len(rest) > 0 {
		if err := a.markAsked(ctx, loose); err != nil {
			return found, err
		}
		asked, err := a.askKeys(ctx, server, rest)
		errs = append(errs, err)
		maps.Copy(found, asked)
	}
	return found, errors.Join(errs...)
}

// whoToFollow divides users of another server into those whose lists are to be known from now on, because a room is shared
// with them, and the rest. loose are those of the rest who share a room as well.
func (a *API) whoToFollow(ctx context.Context, wanted queriedDevices) (followed []string, rest queriedDevices, loose []string, err error) {
	shared, err := a.together(ctx, slices.Collect(maps.Keys(wanted)), func(roomserver.RoomMembership) bool { return true })
	if err != nil {
		return nil, nil, nil, err
	}
	rest = queriedDevices{}
	for user, ids := range wanted {
		if shared[user] && len(followed) < maxFollowed {
			followed = append(followed, user)
			continue
		}
		if shared[user] {
			loose = append(loose, user)
		}
		if ids == nil {
			ids = []string{}
		}
		rest[user] = ids
	}
	return followed, rest, loose, nil
}

// markAsked notes that clients have asked for the keys of remote users with whom rooms are shared, so that they hear of
// whatever their server tells of them next.
func (a *API) markAsked(ctx context.Context, users []string) error {
	if len(users) == 0 {
		return nil
	}
	err := a.db.Write(ctx, func(tx *storage.Tx) error {
		for _, user := range users {
			_, err := tx.Exec(`INSERT INTO remote_device_lists (user_id, stream_id, fresh, mark) VALUES ($1, 0, $2, 0) ON CONFLICT DO NOTHING`, user, false)
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("note whose keys were asked for: %w", err)
	}
	return nil
}

// askKeys asks a server for keys that are not to be remembered.
func (a *API) askKeys(ctx context.Context, server string, wanted queriedDevices) (map[string]*identity, error) {
	body, err := json.Marshal(map[string]queriedDevices{"device_keys": wanted})
	if err != nil {
		return nil, err
	}
	answer, err := a.remote.QueryKeys(ctx, server, body)
	if err != nil {
		return nil, err
	}
	found := make(map[string]*identity, len(wanted))
	gjson.GetBytes(answer, "device_keys").ForEach(func(user, devices gjson.Result) bool {
		if _, asked := wanted[user.Str]; !asked || !devices.IsObject() {
			return true
		}
		i := &identity{}
		devices.ForEach(func(id, keys gjson.Result) bool {
			if d, ok := remoteDevice(user.Str, id.Str, keys, keys.Get("unsigned.device_display_name").Str); ok && len(i.devices) < maxRemoteDevices {
				i.devices = append(i.devices, d)
			}
			return true
		})
		found[user.Str] = i
		return true
	})
	for name, set := range map[string]func(i *identity, key []byte){
		"master_keys":       func(i *identity, key []byte) { i.master = key },
		"self_signing_keys": func(i *identity, key []byte) { i.selfSigning = key },
	} {
		usage := usageMaster
		if name == "self_signing_keys" {
			usage = usageSelfSigning
		}
		gjson.GetBytes(answer, name).ForEach(func(user, key gjson.Result) bool {
			if _, asked := wanted[user.Str]; !asked {
				return true
			}
			checked, err := checkCrossSigningKey([]byte(key.Raw), user.Str, usage)
			if err != nil {
				return true
			}
			if found[user.Str] == nil {
				found[user.Str] = &identity{}
			}
			set(found[user.Str], checked.content)
			return true
		})
	}
	return found, nil
}

// remoteDevice checks the keys of a device that another server sent.
func remoteDevice(user, id string, keys gjson.Result, name string) (d deviceKeys, ok bool) {
	if !keys.IsObject() || id == "" || len(id) > maxKeyName {
		return d, false
	}
	content, err := checkDeviceKeys([]byte(keys.Raw), user, id)
	if err != nil {
		return d, false
	}
	if len(name) > maxKeyName {
		name = ""
	}
	return deviceKeys{id: id, keys: content, name: name}, true
}

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

// canonicalOf returns a copy of the canonical form of an object.
func canonicalOf(rawObject []byte) ([]byte, error) {
	canon, err := canonicaljson.Canonical(rawObject, canonicaljson.Lax)
	if err != nil || canon[0] != '{' {
		return nil, mxerr.BadJSON("A key is not as it should be").With(err)
	}
	return append([]byte(nil), canon...), nil
}
