package e2ee

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"

	"github.com/myelin-im/myelin/accounts"
	"github.com/myelin-im/myelin/internal/canonicaljson"
	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/internal/signing"
	"github.com/myelin-im/myelin/storage"
)

// maxQueried bounds the users of one request.
const maxQueried = 20_000

// queriedDevices is from user to the ids of devices; none means all.
type queriedDevices map[string][]string

type queryRequest struct {
	Timeout    *int64         `json:"timeout"`
	DeviceKeys queriedDevices `json:"device_keys" required:"true"`
}

// keysAnswer is an answer about keys. It is put together from pieces that are kept in memory as they are shown.
type keysAnswer struct {
	reader string // a local user; empty: another server
	// made are the signatures of the reader, by whose keys they are on.
	made     map[string][]signature
	users    []answered
	failures map[string]json.RawMessage
	size     int // about
}

// answered is what is known of a user, and which devices are asked for; none means all.
type answered struct {
	user string
	*identity
	ids []string
}

// add adds a user's keys: those of the devices with these ids, or of all.
func (k *keysAnswer) add(user string, i *identity, ids []string) {
	k.users = append(k.users, answered{user, i, ids})
	if len(ids) == 0 {
		k.size += i.size() + len(user)
	}
}

// AppendJSON appends the answer.
func (k *keysAnswer) AppendJSON(b []byte) ([]byte, error) {
	b = append(slices.Grow(b, k.size), `{"device_keys":{`...)
	for n := range k.users {
		if n > 0 {
			b = append(b, ',')
		}
		b = k.users[n].appendDevices(b)
	}
	b = k.appendKeys(append(b, `},"master_keys":`...), func(u *answered) []byte { return withSignatures(u.master, k.reader, k.made[u.user]) })
	b = k.appendKeys(append(b, `,"self_signing_keys":`...), func(u *answered) []byte { return u.selfSigning })
	if k.reader == "" {
		return append(b, '}'), nil
	}
	b = k.appendKeys(append(b, `,"user_signing_keys":`...), func(u *answered) []byte {
		if u.user != k.reader {
			return nil
		}
		return u.userSigning
	})
	failures, err := json.Marshal(k.failures)
	if err != nil {
		return nil, fmt.Errorf("encode failures: %w", err)
	}
	return append(append(append(b, `,"failures":`...), failures...), '}'), nil
}

// appendKeys appends an object with a key of each user who has it.
func (k *keysAnswer) appendKeys(b []byte, key func(u *answered) []byte) []byte {
	b = append(b, '{')
	first := true
	for n := range k.users {
		value := key(&k.users[n])
		if value == nil {
			continue
		}
		b = append(appendName(b, k.users[n].user, &first), value...)
	}
	return append(b, '}')
}

// appendDevices appends the member of a user in device_keys.
func (u *answered) appendDevices(b []byte) []byte {
	b = append(canonicaljson.AppendString(b, u.user), ":{"...)
	first := true
	for n := range u.devices {
		d := &u.devices[n]
		if d.keys != nil && (len(u.ids) == 0 || slices.Contains(u.ids, d.id)) {
			b = d.append(appendName(b, d.id, &first))
		}
	}
	return append(b, '}')
}

// appendName appends the name of an object's next member.
func appendName(b []byte, name string, first *bool) []byte {
	if !*first {
		b = append(b, ',')
	}
	*first = false
	return append(canonicaljson.AppendString(b, name), ':')
}

// withSignatures adds those signatures of the reader that are on a master key. Nobody else sees them.
func withSignatures(master []byte, reader string, made []signature) []byte {
	if len(made) == 0 {
		return master
	}
	key := publicKey(master)
	for _, s := range made {
		if s.target != key {
			continue
		}
		if signed, err := signing.AddSignature(master, reader, s.keyID, s.value); err == nil {
			master = signed
		}
	}
	return master
}

// query: client-server API v1.19, POST /keys/query.
func (a *API) query(ctx context.Context, by *httpapi.Caller, in *queryRequest) (*keysAnswer, error) {
	if len(in.DeviceKeys) > maxQueried {
		return nil, mxerr.TooLarge("These are too many users at once")
	}
	made, err := a.signatures.Get(ctx, by.UserID)
	if err != nil {
		return nil, err
	}
	users := make([]string, 0, len(in.DeviceKeys))
	for user := range in.DeviceKeys {
		if _, ok := serverOf(user); ok {
			users = append(users, user)
		}
	}
	slices.Sort(users)
	known, err := a.identitiesOf(ctx, users)
	if err != nil {
		return nil, err
	}
	current, err := a.current(ctx, known)
	if err != nil {
		return nil, err
	}
	out := &keysAnswer{reader: by.UserID, made: made, users: make([]answered, 0, len(users)), failures: map[string]json.RawMessage{}}
	elsewhere := map[string]queriedDevices{}
	for _, user := range users {
		i := known[user]
		if a.isLocal(user) || current[user] {
			out.add(user, i, in.DeviceKeys[user])
			continue
		}
		server, _ := serverOf(user)
		if elsewhere[server] == nil {
			elsewhere[server] = queriedDevices{}
		}
		elsewhere[server][user] = in.DeviceKeys[user]
	}
	if len(elsewhere) > 0 {
		a.queryRemote(ctx, patience(in.Timeout), elsewhere, out)
	}
	return out, nil
}

type serverQueryRequest struct {
	DeviceKeys queriedDevices `json:"device_keys" required:"true"`
}

// serverQuery: server-server API v1.19, POST /user/keys/query.
func (a *API) serverQuery(ctx context.Context, _ *httpapi.Caller, in *serverQueryRequest) (*keysAnswer, error) {
	if len(in.DeviceKeys) > maxQueried {
		return nil, mxerr.TooLarge("These are too many users at once")
	}
	users := make([]string, 0, len(in.DeviceKeys))
	for user := range in.DeviceKeys {
		if a.isLocal(user) {
			users = append(users, user)
		}
	}
	slices.Sort(users)
	known, err := a.identitiesOf(ctx, users)
	if err != nil {
		return nil, err
	}
	out := &keysAnswer{users: make([]answered, 0, len(users))}
	for _, user := range users {
		out.add(user, known[user], in.DeviceKeys[user])
	}
	return out, nil
}

type serverDevicesRequest struct {
	UserID string `path:"userId"`
}

// serverDevices: server-server API v1.19, GET /user/devices/{userId}. What the other server learns here is what it
// is sent changes of from now on.
func (a *API) serverDevices(ctx context.Context, by *httpapi.Caller, in *serverDevicesRequest) (*devicesAnswer, error) {
	if !a.isLocal(in.UserID) {
		return nil, mxerr.InvalidParam("That is no user of this server")
	}
	out := &devicesAnswer{user: in.UserID}
	err := a.db.Read(ctx, func(tx *storage.Tx) error {
		known, err := accounts.Exists(tx, in.UserID)
		if err != nil {
			return err
		}
		if !known {
			return mxerr.NotFound("There is no such user")
		}
		// Both from one snapshot: the version must not be newer than the keys.
		out.streamID = 0
		if _, err := tx.Get(`SELECT pos FROM device_list_changes WHERE user_id = $1`, []any{in.UserID}, &out.streamID); err != nil {
			return err
		}
		out.streamID = out.streamID*streamsPerPosition + streamsPerPosition - 1
		out.identity, err = localIdentity(tx, in.UserID)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read devices: %w", err)
	}
	return out, a.noteSent(ctx, by.Origin, in.UserID, out.streamID)
}

// devicesAnswer is the answer about a user's devices.
type devicesAnswer struct {
	user     string
	streamID int64
	identity *identity
}

// AppendJSON appends the answer.
func (d *devicesAnswer) AppendJSON(b []byte) ([]byte, error) {
	b = canonicaljson.AppendString(append(b, `{"user_id":`...), d.user)
	b = strconv.AppendInt(append(b, `,"stream_id":`...), d.streamID, 10)
	b = append(b, `,"devices":[`...)
	for n := range d.identity.devices {
		if n > 0 {
			b = append(b, ',')
		}
		device := &d.identity.devices[n]
		b = canonicaljson.AppendString(append(b, `{"device_id":`...), device.id)
		if device.keys != nil {
			b = append(append(b, `,"keys":`...), device.keys...)
		}
		if device.name != "" {
			b = canonicaljson.AppendString(append(b, `,"device_display_name":`...), device.name)
		}
		b = append(b, '}')
	}
	b = append(b, ']')
	if d.identity.master != nil {
		b = append(append(b, `,"master_key":`...), d.identity.master...)
	}
	if d.identity.selfSigning != nil {
		b = append(append(b, `,"self_signing_key":`...), d.identity.selfSigning...)
	}
	return append(b, '}'), nil
}
