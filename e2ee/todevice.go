package e2ee

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/myelin-im/myelin/accounts"
	"github.com/myelin-im/myelin/internal/canonicaljson"
	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/storage"
)

const (
	// maxToDeviceBody bounds a request that sends to devices, maxToDevice one message, in bytes.
	maxToDeviceBody = 16 << 20
	maxToDevice     = 64 << 10
	// maxRecipients bounds the devices of one request.
	maxRecipients = 10_000
	// allDevices stands for all devices of a user.
	allDevices = "*"
)

// messages is from user to device, or allDevices, to content.
type messages map[string]map[string]json.RawMessage

type toDeviceRequest struct {
	Type     string   `path:"eventType"`
	Txn      string   `path:"txnId"`
	Messages messages `json:"messages" required:"true"`
}

var (
	toDeviceTable = storage.DeclareTable("to_device", storage.Insert,
		storage.Key("user_id", storage.Bytes), storage.Key("device_id", storage.Bytes), storage.Key("pos", storage.Int), storage.Col("event", storage.Bytes))
	toDeviceTxnsTable = storage.DeclareTable("to_device_txns", storage.Insert,
		storage.Key("key", storage.Bytes), storage.Col("expires_ts", storage.Int))
	outgoingTable = storage.DeclareTable("outgoing_edus", storage.Insert,
		storage.Key("destination", storage.Bytes), storage.Key("pos", storage.Int), storage.Key("n", storage.Int),
		storage.Col("type", storage.Bytes), storage.Col("content", storage.Bytes))
)

// sendToDevice: client-server API v1.19, PUT /sendToDevice/{eventType}/{txnId}. Each transaction of a device happens
// once.
func (a *API) sendToDevice(ctx context.Context, by *httpapi.Caller, in *toDeviceRequest) (*httpapi.Empty, error) {
	if err := in.check(); err != nil {
		return nil, err
	}
	key := txnKey("client", by.UserID, by.DeviceID, in.Type, in.Txn)
	d := delivery{api: a, sender: by.UserID, typ: in.Type}
	sent, err := d.prepare(ctx, key, in.Messages)
	if err != nil {
		return nil, err
	}
	if sent {
		return nil, nil
	}
	now := a.nowMS()
	u := d.unit()
	u.Add(toDeviceTxnsTable, key, now+txnLifetime.Milliseconds())
	if err := d.addRemote(u, in.Messages); err != nil {
		return nil, err
	}
	a.forgetTxns(u, now)
	if err := a.appendOnce(ctx, key, u); err != nil {
		return nil, fmt.Errorf("send to devices: %w", err)
	}
	return nil, nil
}

// txnKey names a transaction.
func txnKey(parts ...string) []byte {
	h := sha256.Sum256(fmt.Appendf(nil, "%q", parts))
	return h[:]
}

// prepare finds the devices that messages are for, unless the transaction was sent before.
func (d *delivery) prepare(ctx context.Context, key []byte, all messages) (sent bool, err error) {
	err = d.api.db.Read(ctx, func(tx *storage.Tx) (err error) {
		if sent, err = tx.Get(`SELECT expires_ts FROM to_device_txns WHERE key = $1`, []any{key}, new(int64)); err != nil || sent {
			return err
		}
		return d.address(tx, all)
	})
	if err != nil {
		return false, fmt.Errorf("look up devices: %w", err)
	}
	return sent, nil
}

// check refuses messages that nobody should send.
func (in *toDeviceRequest) check() error {
	if len(in.Type) > 255 {
		return mxerr.InvalidParam("The event type is longer than 255 bytes")
	}
	total := 0
	for _, devices := range in.Messages {
		total += len(devices)
		for _, content := range devices {
			if len(content) == 0 || content[0] != '{' {
				return mxerr.BadJSON("The content of a message is no object")
			}
			if len(content) > maxToDevice {
				return mxerr.TooLarge("A message is larger than 64 KiB")
			}
		}
	}
	if total > maxRecipients {
		return mxerr.TooLarge("These are too many devices at once")
	}
	return nil
}

// delivery is messages of one sender on their way to local devices.
type delivery struct {
	api         *API
	sender, typ string
	local       []addressed
	users       []string // of local
}

// addressed is a message with its device.
type addressed struct {
	user, device string
	content      json.RawMessage
}

// address finds the local devices that messages are for. Messages for devices that do not exist go nowhere.
func (d *delivery) address(tx *storage.Tx, all messages) error {
	d.local, d.users = d.local[:0], d.users[:0]
	for user, devices := range all {
		if !d.api.isLocal(user) {
			continue
		}
		before := len(d.local)
		if len(devices) == 1 && devices[allDevices] == nil {
			for device, content := range devices {
				exists, err := accounts.HasDevice(tx, user, device)
				if err != nil {
					return err
				}
				if exists {
					d.local = append(d.local, addressed{user, device, content})
				}
			}
		} else if err := d.addressUser(tx, user, devices); err != nil {
			return err
		}
		if len(d.local) > before {
			d.users = append(d.users, user)
		}
	}
	return nil
}

// addressUser addresses several devices of a user. A message for a device goes before one for all.
func (d *delivery) addressUser(tx *storage.Tx, user string, devices map[string]json.RawMessage) error {
	return accounts.EachDevice(tx, []string{user}, func(_ string, device accounts.Device) {
		content, ok := devices[device.ID]
		if !ok {
			content, ok = devices[allDevices]
		}
		if ok {
			d.local = append(d.local, addressed{user, device.ID, content})
		}
	})
}

// unit makes the unit that puts the messages into the inboxes. It has one position.
func (d *delivery) unit() *storage.Unit {
	u := &storage.Unit{Positions: 1}
	tail := canonicaljson.AppendString([]byte(`,"sender":`), d.sender)
	tail = append(canonicaljson.AppendString(append(tail, `,"type":`...), d.typ), '}')
	rendered := map[*byte][]byte{} // "*" and copies share bytes
	for _, m := range d.local {
		event := rendered[&m.content[0]]
		if event == nil {
			event = append(append(append(make([]byte, 0, len(m.content)+len(tail)+12), `{"content":`...), m.content...), tail...)
			rendered[&m.content[0]] = event
		}
		u.Add(toDeviceTable, m.user, m.device, storage.Pos(1), event)
		d.api.overfull.grew(inboxKey{m.user, m.device}, int64(len(event)))
	}
	for _, user := range d.users {
		u.Notices = append(u.Notices, storage.Notice{Pos: 1, Kind: storage.ToDevice, User: user})
	}
	return u
}

// directToDevice is the content of m.direct_to_device.
type directToDevice struct {
	Sender    string   `json:"sender"`
	Type      string   `json:"type"`
	MessageID string   `json:"message_id"`
	Messages  messages `json:"messages"`
}

// addRemote adds what other servers' devices are sent.
func (d *delivery) addRemote(u *storage.Unit, all messages) error {
	byServer := map[string]messages{}
	for user, devices := range all {
		server, ok := serverOf(user)
		if !ok || server == d.api.rooms.Name() || d.api.remote == nil || len(devices) == 0 {
			continue
		}
		if byServer[server] == nil {
			byServer[server] = messages{}
		}
		byServer[server][user] = devices
	}
	for server, some := range byServer {
		for n, part := range some.split() {
			var id [16]byte
			if _, err := rand.Read(id[:]); err != nil {
				return fmt.Errorf("choose a message id: %w", err)
			}
			content, err := json.Marshal(directToDevice{d.sender, d.typ, hex.EncodeToString(id[:]), part})
			if err != nil {
				return fmt.Errorf("encode messages for %s: %w", server, err)
			}
			u.Add(outgoingTable, server, storage.Pos(1), n, messageEDU, content)
		}
	}
	if len(byServer) > 0 {
		u.Notices = append(u.Notices, storage.Notice{Pos: 1, Kind: storage.Outgoing})
	}
	return nil
}

// maxEDU is about how large an EDU gets, in bytes: servers refuse transactions and EDUs that are much larger than an event.
const maxEDU = 60 << 10

// split divides messages into such as fit into an EDU each, in a fixed order.
func (m messages) split() []messages {
	var parts []messages
	size := maxEDU
	users := make([]string, 0, len(m))
	for user := range m {
		users = append(users, user)
	}
	slices.Sort(users)
	for _, user := range users {
		devices := make([]string, 0, len(m[user]))
		for device := range m[user] {
			devices = append(devices, device)
		}
		slices.Sort(devices)
		for _, device := range devices {
			content := m[user][device]
			if size += len(user) + len(device) + len(content); size > maxEDU {
				parts = append(parts, messages{})
				size = len(user) + len(device) + len(content)
			}
			part := parts[len(parts)-1]
			if part[user] == nil {
				part[user] = map[string]json.RawMessage{}
			}
			part[user][device] = content
		}
	}
	return parts
}

// appendOnce hands the unit of a transaction to the committer and waits for its outcome. A client that hangs up does not
// take it back. It is no failure if the same transaction got there first.
func (a *API) appendOnce(ctx context.Context, key []byte, u *storage.Unit) error {
	done := make(chan error, 1)
	u.Done = func(_ int64, err error) { done <- err }
	a.db.Append(u)
	err := <-done
	if !errors.Is(err, storage.ErrConflict) {
		return err
	}
	there, failure := a.db.Get(context.WithoutCancel(ctx), `SELECT expires_ts FROM to_device_txns WHERE key = $1`, []any{key}, new(int64))
	if failure == nil && there {
		return nil
	}
	return errors.Join(err, failure)
}

// ReceiveToDevice takes an EDU m.direct_to_device from another server. It is delivered once, however often it comes.
func (a *API) ReceiveToDevice(ctx context.Context, origin string, content json.RawMessage) error {
	var in directToDevice
	if err := json.Unmarshal(content, &in); err != nil {
		return mxerr.BadJSON("m.direct_to_device is not as it should be").With(err)
	}
	if server, ok := serverOf(in.Sender); !ok || server != origin {
		return mxerr.Forbidden("The sender is not of the server that sends")
	}
	if in.MessageID == "" || len(in.MessageID) > 255 {
		return mxerr.InvalidParam("m.direct_to_device has no usable message_id")
	}
	req := toDeviceRequest{Type: in.Type, Messages: in.Messages}
	if err := req.check(); err != nil {
		return err
	}
	d := delivery{api: a, sender: in.Sender, typ: in.Type}
	key := txnKey("server", origin, in.MessageID)
	known, err := d.prepare(ctx, key, in.Messages)
	if err != nil || known {
		return err
	}
	now := a.nowMS()
	u := d.unit()
	u.Add(toDeviceTxnsTable, key, now+arrivedLifetime.Milliseconds())
	a.forgetTxns(u, now)
	if err := a.appendOnce(ctx, key, u); err != nil {
		return fmt.Errorf("deliver to devices: %w", err)
	}
	return nil
}
