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
	asked := func(user string) *identity {
		if _, asked := wanted[user]; asked && found[user] == nil {
			found[user] = &identity{}
		}
		return found[user]
	}
	gjson.GetBytes(answer, "device_keys").ForEach(func(user, devices gjson.Result) bool {
		if !devices.IsObject() {
			return true
		}
		if i := asked(user.Str); i != nil {
			i.takeDevices(user.Str, devices)
		}
		return true
	})
	for _, keys := range []struct{ member, usage string }{{"master_keys", usageMaster}, {"self_signing_keys", usageSelfSigning}} {
		gjson.GetBytes(answer, keys.member).ForEach(func(user, key gjson.Result) bool {
			checked, err := checkCrossSigningKey([]byte(key.Raw), user.Str, keys.usage)
			if err != nil {
				return true
			}
			if i := asked(user.Str); i != nil {
				i.setKey(keys.usage, checked.content)
			}
			return true
		})
	}
	return found, nil
}

// takeDevices takes the devices of a remote user whose keys are usable.
func (i *identity) takeDevices(user string, devices gjson.Result) {
	devices.ForEach(func(id, keys gjson.Result) bool {
		d, ok := remoteDevice(user, id.Str, keys, keys.Get("unsigned.device_display_name").Str)
		if ok && len(i.devices) < maxRemoteDevices && i.device(d.id) == nil {
			i.devices = append(i.devices, d)
		}
		return true
	})
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
