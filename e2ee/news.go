package e2ee

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/storage"
)

// deviceListUpdate is the content of m.device_list_update.
type deviceListUpdate struct {
	UserID   string          `json:"user_id"`
	DeviceID string          `json:"device_id"`
	StreamID int64           `json:"stream_id"`
	PrevID   []int64         `json:"prev_id"`
	Deleted  bool            `json:"deleted,omitempty"`
	Keys     json.RawMessage `json:"keys,omitempty"`
	Name     string          `json:"device_display_name,omitempty"`
}

// signingKeyUpdate is the content of m.signing_key_update.
type signingKeyUpdate struct {
	UserID      string          `json:"user_id"`
	Master      json.RawMessage `json:"master_key,omitempty"`
	SelfSigning json.RawMessage `json:"self_signing_key,omitempty"`
}

// news is what changed for a local user at one position, of which other servers have to hear.
type news struct {
	pos     int64
	user    string
	devices []string // an empty one stands for the cross-signing keys
}

// destinationsPerWrite bounds the servers of one unit.
const destinationsPerWrite = 100

// streamsPerPosition is how many stream ids of a user there are for one position of the log: each change of a device
// needs its own.
const streamsPerPosition = 1024

// tellNews turns changes of local users into EDUs for the servers they share rooms with. A change is forgotten with
// the last of them, so that a crash in between repeats; device_lists_sent keeps that from doubling.
func (a *API) tellNews(ctx context.Context) error {
	for {
		n := news{}
		found := false
		err := a.db.Read(ctx, func(tx *storage.Tx) (err error) {
			found, err = tx.Get(`SELECT pos, user_id FROM device_list_news ORDER BY pos, user_id LIMIT 1`, nil, &n.pos, &n.user)
			if err != nil || !found {
				return err
			}
			n.devices, err = storage.List[string](tx, `SELECT device_id FROM device_list_news WHERE pos = $1 AND user_id = $2 ORDER BY device_id DESC`, n.pos, n.user)
			return err
		})
		if err != nil {
			return fmt.Errorf("read changed devices: %w", err)
		}
		if !found {
			return nil
		}
		if err := a.tell(ctx, &n); err != nil {
			return err
		}
	}
}

// tell tells all servers concerned.
func (a *API) tell(ctx context.Context, news *news) error {
	servers, err := a.serversOf(ctx, news.user)
	if err != nil {
		return err
	}
	if err := a.tellServers(ctx, news, servers); err != nil {
		return err
	}
	if err := a.db.Write(ctx, func(tx *storage.Tx) error { return forgetNews(tx, news) }); err != nil {
		return fmt.Errorf("forget a change of devices of %s: %w", news.user, err)
	}
	return nil
}

// forgetNews ends the telling of a change. What servers know that share no room any more is out of date from now on: should
// they share one again, they are told everything.
func forgetNews(tx *storage.Tx, news *news) error {
	if _, err := tx.Exec(`DELETE FROM device_list_news WHERE pos = $1 AND user_id = $2`, news.pos, news.user); err != nil {
		return err
	}
	_, err := tx.Exec(`DELETE FROM device_lists_sent WHERE user_id = $1 AND stream_id < $2`, news.user, news.pos*streamsPerPosition)
	return err
}

// tellServers queues news for servers.
func (a *API) tellServers(ctx context.Context, n *news, servers []string) error {
	for len(servers) > 0 {
		k := min(len(servers), destinationsPerWrite)
		if err := a.db.Write(ctx, func(tx *storage.Tx) error { return writeUpdates(tx, n, servers[:k], false) }); err != nil {
			return fmt.Errorf("tell of devices of %s: %w", n.user, err)
		}
		servers = servers[k:]
	}
	return nil
}

// serversOf returns the other servers in the rooms of a local user, sorted.
func (a *API) serversOf(ctx context.Context, user string) ([]string, error) {
	if a.remote == nil {
		return nil, nil
	}
	rooms, err := a.rooms.UserRooms(ctx, user)
	if err != nil {
		return nil, err
	}
	set := map[string]bool{}
	for i := range rooms {
		if rooms[i].Membership != roomserver.Join {
			continue
		}
		room, err := a.rooms.RoomByNID(ctx, rooms[i].NID)
		if errors.Is(err, roomserver.ErrUnknownRoom) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, server := range room.Servers() {
			set[server] = true
		}
	}
	delete(set, a.rooms.Name())
	servers := make([]string, 0, len(set))
	for server := range set {
		servers = append(servers, server)
	}
	slices.Sort(servers)
	return servers, nil
}

// writeUpdates queues EDUs about devices of a user, as they are now, for servers. Those that know of this already are
// passed over; with first, also those that know anything of the user.
func writeUpdates(tx *storage.Tx, news *news, servers []string, first bool) error {
	if len(servers) == 0 {
		return nil
	}
	identity, err := localIdentity(tx, news.user)
	if err != nil {
		return err
	}
	written := false
	for _, server := range servers {
		var prev *int64
		if _, err := tx.Get(`SELECT stream_id FROM device_lists_sent WHERE user_id = $1 AND destination = $2`, []any{news.user, server}, &prev); err != nil {
			return err
		}
		if prev != nil && (first || *prev >= news.pos*streamsPerPosition) {
			continue
		}
		written = true
		streamID, err := queueUpdates(tx, server, news, prev, identity)
		if err != nil {
			return err
		}
		if err := putSent(tx, server, news.user, streamID); err != nil {
			return err
		}
	}
	if written {
		tx.Notice(storage.Notice{Kind: storage.Outgoing})
	}
	return nil
}

// queueUpdates queues the EDUs for one server and returns the last stream id. Each names the one before it, so that the
// loss of one is noticed.
func queueUpdates(tx *storage.Tx, server string, news *news, prev *int64, i *identity) (streamID int64, err error) {
	pos, err := tx.Position()
	if err != nil {
		return 0, err
	}
	var n int64
	if _, err := tx.Get(`SELECT count(*) FROM outgoing_edus WHERE destination = $1 AND pos = $2`, []any{server, pos}, &n); err != nil {
		return 0, err
	}
	streamID = news.pos * streamsPerPosition
	prevIDs := []int64{}
	if prev != nil {
		prevIDs = append(prevIDs, *prev)
	}
	for k, id := range news.devices {
		typ, content := "m.signing_key_update", any(signingKeyUpdate{news.user, i.master, i.selfSigning})
		if id != "" {
			streamID = news.pos*streamsPerPosition + int64(min(k, streamsPerPosition-1))
			u := deviceListUpdate{UserID: news.user, DeviceID: id, StreamID: streamID, PrevID: prevIDs}
			if d := i.device(id); d == nil {
				u.Deleted = true
			} else {
				u.Keys, u.Name = d.keys, d.name
			}
			typ, content = "m.device_list_update", u
			prevIDs = []int64{streamID}
		}
		encoded, err := json.Marshal(content)
		if err != nil {
			return 0, fmt.Errorf("encode %s: %w", typ, err)
		}
		if _, err := tx.Exec(`INSERT INTO outgoing_edus (destination, pos, n, type, content) VALUES ($1, $2, $3, $4, $5)`, server, pos, n, typ, encoded); err != nil {
			return 0, err
		}
		n++
	}
	return streamID, nil
}

func putSent(tx *storage.Tx, server, user string, streamID int64) error {
	_, err := tx.Exec(`INSERT INTO device_lists_sent (user_id, destination, stream_id) VALUES ($1, $2, $3)
		ON CONFLICT (user_id, destination) DO UPDATE SET stream_id = excluded.stream_id WHERE device_lists_sent.stream_id < excluded.stream_id`,
		user, server, streamID)
	return err
}

// noteSent notes that a server has read a user's devices.
func (a *API) noteSent(ctx context.Context, server, user string, streamID int64) error {
	var known int64
	found, err := a.db.Get(ctx, `SELECT stream_id FROM device_lists_sent WHERE user_id = $1 AND destination = $2`, []any{user, server}, &known)
	if err == nil && (!found || known < streamID) {
		err = a.db.Write(ctx, func(tx *storage.Tx) error { return putSent(tx, server, user, streamID) })
	}
	if err != nil {
		return fmt.Errorf("note what %s knows: %w", server, err)
	}
	return nil
}
