package queue

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"strconv"
	"time"

	"github.com/myelin-im/myelin/federation/client"
	"github.com/myelin-im/myelin/internal/canonicaljson"
	"github.com/myelin-im/myelin/roomserver"
)

const (
	// sendTimeout is how long a server may take to answer a transaction.
	sendTimeout = time.Minute
	// maxAnswer bounds its answer, in bytes.
	maxAnswer = 1 << 20
)

// transaction is something that is sent at once, and repeated as it is until it is answered.
type transaction struct {
	id     string
	body   []byte
	covers covers

	taken    int           // of destination.pending
	volatile []volatileEDU // among its EDUs
	saved    bool          // it comes from federation_unreached
	low      int64         // the lowest position among its events
}

// covers is what a server has when it has taken a transaction.
type covers struct {
	// Rooms are the last events of rooms.
	Rooms map[int64]int64 `json:"rooms,omitempty"`
	// Source is how far the EDUs of the Source go; 0: none, or not all of them.
	Source int64 `json:"source,omitempty"`
	// EDUs tells that there are EDUs of the Source in it.
	EDUs bool `json:"edus,omitempty"`
}

// lasting tells whether it holds something that must arrive.
func (t *transaction) lasting() bool { return len(t.covers.Rooms) > 0 || t.covers.EDUs }

// next makes the next transaction for a server; nil if there is nothing to send.
func (q *Queue) next(ctx context.Context, d *destination) (*transaction, error) {
	q.mu.Lock()
	kept, lossy := d.kept, d.lossy
	q.mu.Unlock()
	if kept {
		return q.again(ctx, d)
	}
	if lossy {
		if err := q.settle(ctx, d); err != nil {
			return nil, err
		}
	}
	t := &transaction{covers: covers{Rooms: map[int64]int64{}}}
	pdus, err := q.takePDUs(ctx, d, t)
	if err != nil {
		return nil, err
	}
	edus, err := q.takeEDUs(ctx, d, t)
	if err != nil {
		return nil, err
	}
	if len(pdus) == 0 && len(edus) == 0 {
		if t.taken > 0 || len(t.covers.Rooms) > 0 { // events that are gone
			q.succeeded(ctx, d, t)
		}
		return nil, nil
	}
	t.body = q.body(pdus, edus)
	sum := sha256.Sum256(t.body)
	t.id = base64.RawURLEncoding.EncodeToString(sum[:18])
	q.mu.Lock()
	d.flight = t
	q.mu.Unlock()
	return t, nil
}

// again returns the transaction that a server did not answer, unless all that it held has been given up.
func (q *Queue) again(ctx context.Context, d *destination) (*transaction, error) {
	t, err := q.readKept(ctx, d.name)
	if err == nil && t != nil {
		var void bool
		if void, err = q.void(ctx, d.name, t); err == nil && void {
			q.succeeded(ctx, d, &transaction{}) // there is nothing left in which the server fails
			return q.next(ctx, d)
		}
	}
	if err == nil && t == nil { // there is none after all
		q.mu.Lock()
		d.kept = false
		q.mu.Unlock()
		return q.next(ctx, d)
	}
	return t, err
}

// void tells whether a transaction that was not answered holds nothing but EDUs that the Source does not keep any more,
// because they have waited for too long. Else a server that never existed would be tried for ever.
func (q *Queue) void(ctx context.Context, server string, t *transaction) (bool, error) {
	if len(t.covers.Rooms) > 0 || q.cfg.Source == nil {
		return false, nil
	}
	upTo := t.covers.Source
	if upTo == 0 { // part of what was written at one position
		q.mu.Lock()
		upTo = q.pos
		q.mu.Unlock()
	}
	edus, _, err := q.cfg.Source.Pending(ctx, server, 0, upTo, 1)
	return len(edus) == 0, err
}

// settle gets ready to read what a server is owed from federation_owed: what is not written yet is written, and if
// there is nothing at all, the list in memory is complete again.
func (q *Queue) settle(ctx context.Context, d *destination) error {
	if err := q.saveOwed(ctx, d); err != nil {
		return err
	}
	rows, err := q.readOwed(ctx, d.name)
	if err != nil || len(rows) > 0 {
		return err
	}
	sticky, err := q.missed(ctx, d.passed) // which only the worker uses
	if err != nil {
		return err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(d.owed) == 0 {
		d.lossy, d.rows, d.passed = false, false, nil
		d.pending = sticky
	}
	return nil
}

// takePDUs reads the events of the next transaction.
func (q *Queue) takePDUs(ctx context.Context, d *destination, t *transaction) (pdus [][]byte, err error) {
	q.mu.Lock()
	lossy := d.lossy
	refs := append([]ref(nil), d.pending[:min(len(d.pending), maxPDUs)]...)
	q.mu.Unlock()
	if lossy {
		if refs, err = q.readOwed(ctx, d.name); err != nil {
			return nil, err
		}
	} else {
		t.taken = len(refs)
	}
	for _, r := range refs {
		t.covers.Rooms[r.room] = max(t.covers.Rooms[r.room], r.pos)
		if t.low == 0 || r.pos < t.low {
			t.low = r.pos
		}
		e, err := q.event(ctx, r)
		if err != nil {
			return nil, err
		}
		if e != nil {
			pdus = append(pdus, e.JSON())
		}
	}
	return pdus, nil
}

// event reads the event at a place, nil if it is gone.
func (q *Queue) event(ctx context.Context, r ref) (*roomserver.Event, error) {
	room, err := q.cfg.Rooms.RoomByNID(ctx, r.room)
	if errors.Is(err, roomserver.ErrUnknownRoom) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if e := room.Latest(r.pos); e != nil {
		return e, nil
	}
	events, err := q.cfg.Rooms.Arrived(ctx, room, r.pos-1, r.pos, 1)
	if err != nil || len(events) == 0 {
		return nil, err
	}
	return events[0], nil
}

// takeEDUs takes the EDUs of the next transaction: those of the Source first.
func (q *Queue) takeEDUs(ctx context.Context, d *destination, t *transaction) (edus []EDU, err error) {
	q.mu.Lock()
	due, split, end := d.due, d.split, d.splitEnd
	q.mu.Unlock()
	if len(split) == 0 && due > 0 && q.cfg.Source != nil {
		if split, end, err = q.cfg.Source.Pending(ctx, d.name, 0, due, maxEDUs); err != nil {
			return nil, err
		}
	}
	edus = append(edus, split[:min(len(split), maxEDUs)]...)
	split = split[len(edus):]
	q.mu.Lock()
	defer q.mu.Unlock()
	d.split, d.splitEnd = split, end
	if t.covers.EDUs = len(edus) > 0; t.covers.EDUs && len(split) == 0 {
		t.covers.Source = end // what did not fit is delivered as a whole, when all of it is
	}
	if len(split) == 0 && (len(edus) == 0 || end >= due) && d.due == due {
		d.due = 0
	}
	n := min(len(d.edus), maxEDUs-len(edus))
	t.volatile = append(t.volatile, d.edus[:n]...)
	d.edus = append(d.edus[:0], d.edus[n:]...)
	for _, e := range t.volatile {
		edus = append(edus, e.EDU)
	}
	return edus, nil
}

// body writes a transaction, in canonical order.
func (q *Queue) body(pdus [][]byte, edus []EDU) []byte {
	size := 200
	for _, p := range pdus {
		size += len(p) + 1
	}
	for _, e := range edus {
		size += len(e.Content) + len(e.Type) + 30
	}
	b := append(make([]byte, 0, size), '{')
	if len(edus) > 0 {
		b = append(b, `"edus":[`...)
		for i, e := range edus {
			if i > 0 {
				b = append(b, ',')
			}
			b = append(append(b, `{"content":`...), e.Content...)
			b = canonicaljson.AppendString(append(b, `,"edu_type":`...), e.Type)
			b = append(b, '}')
		}
		b = append(b, "],"...)
	}
	b = canonicaljson.AppendString(append(b, `"origin":`...), q.cfg.Name)
	b = strconv.AppendInt(append(b, `,"origin_server_ts":`...), q.cfg.Now().UnixMilli(), 10)
	b = append(b, `,"pdus":[`...)
	for i, p := range pdus {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, p...)
	}
	return append(b, "]}"...)
}

// send makes the request.
func (q *Queue) send(ctx context.Context, server string, t *transaction) error {
	_, err := q.cfg.Client.Do(ctx, client.Request{
		Server: server, Method: "PUT", Path: client.Path("/_matrix/federation/v1/send/%s", t.id), Body: t.body,
		Timeout: sendTimeout, MaxBytes: maxAnswer, Try: true,
	})
	if errors.Is(err, client.ErrMalformed) || errors.Is(err, client.ErrTooLarge) {
		return nil // the status says that it was taken, and what becomes of single events does not matter here
	}
	return err
}

// retryAfter is when a server that refused a request says to come again; 0 if it does not say.
func retryAfter(err error) time.Duration {
	var refused *client.Error
	if errors.As(err, &refused) {
		return refused.RetryAfter
	}
	return 0
}
