package federation

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/tidwall/gjson"

	"github.com/myelin-im/myelin/federation/inbox"
	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/internal/ratelimit"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/roomserver/pdu"
)

const (
	// maxPDUs and maxEDUs bound a transaction (server-server API v1.19, "Transactions").
	maxPDUs = 50
	maxEDUs = 100
	// maxTransaction bounds its body, in bytes: 50 events of 64 KiB with something around them, and EDUs.
	maxTransaction = 10 << 20
	// maxOwed bounds the PDUs of one server that have been answered and wait; more wait for their answer.
	maxOwed = 1000
	// admitTimeout is how long they do.
	admitTimeout = 30 * time.Second
	// rememberTransactions is how long a repeated transaction is known as such.
	rememberTransactions = 24 * time.Hour
	// runningLanes bounds how many rooms and servers are worked on at the same time.
	runningLanes = 256
)

func (a *API) transactionEndpoints() []httpapi.Endpoint {
	return []httpapi.Endpoint{
		httpapi.New("PUT", v1+"/send/{txnId}", httpapi.Server, ratelimit.Federation, a.transaction).WithMaxBody(maxTransaction),
	}
}

type transactionRequest struct {
	TxnID  string            `path:"txnId"`
	Origin string            `json:"origin"`
	PDUs   []json.RawMessage `json:"pdus"`
	EDUs   []json.RawMessage `json:"edus"`
}

// pduResult is what becomes of one event of a transaction.
type pduResult struct {
	Error string `json:"error,omitempty"`
}

type transactionAnswer struct {
	PDUs map[string]pduResult `json:"pdus"`
}

// staged is the part of a transaction that is to be worked through.
type staged struct {
	PDUs []json.RawMessage `json:"pdus,omitempty"`
	EDUs []json.RawMessage `json:"edus,omitempty"`
}

// transaction: server-server API v1.19, PUT /send. What could be valid is on disk before the answer, and is judged after
// it, since peers time out and send again. The answer has an error for what was dropped at once.
func (a *API) transaction(ctx context.Context, by *httpapi.Caller, in *transactionRequest) (*jsonAnswer, error) {
	if len(in.PDUs) > maxPDUs || len(in.EDUs) > maxEDUs {
		return nil, mxerr.New(http.StatusBadRequest, "M_TOO_LARGE", "A transaction has at most 50 PDUs and 100 EDUs")
	}
	if in.Origin != "" && in.Origin != by.Origin {
		return nil, mxerr.Forbidden("The transaction is of another server")
	}
	if answer, found, err := a.inbox.Answer(ctx, by.Origin, in.TxnID); err != nil || found {
		return (*jsonAnswer)(&answer), err
	}
	answer := transactionAnswer{map[string]pduResult{}}
	keep := staged{EDUs: in.EDUs}
	w := a.work(by.Origin, in.TxnID)
	for _, raw := range in.PDUs {
		id, err := a.sort(ctx, w, raw)
		if err == nil {
			keep.PDUs = append(keep.PDUs, raw)
		}
		if id != "" {
			answer.PDUs[id] = result(err)
		}
	}
	w.edus = in.EDUs
	body, err := json.Marshal(keep)
	if err != nil {
		return nil, err
	}
	if w.empty() {
		body = nil
	}
	out, err := json.Marshal(answer)
	if err != nil {
		return nil, err
	}
	return (*jsonAnswer)(&out), a.accept(ctx, w, inbox.Transaction{Origin: by.Origin, TxnID: in.TxnID, Answer: out, Body: body})
}

// accept keeps a transaction and begins to work on it.
func (a *API) accept(ctx context.Context, w *work, t inbox.Transaction) error {
	waiting, cancel := context.WithTimeout(ctx, admitTimeout)
	defer cancel()
	if !a.lanes.Admit(waiting, w.origin, w.size(), maxOwed) {
		return mxerr.LimitExceeded(admitTimeout)
	}
	fresh, err := a.inbox.Put(ctx, t)
	if err != nil || !fresh || w.empty() {
		a.lanes.Release(w.origin, w.size())
		return err
	}
	a.begin(w)
	return nil
}

// result is the answer for one event.
func result(err error) pduResult {
	if err == nil {
		return pduResult{}
	}
	if e := mxerr.As(err); e != nil {
		return pduResult{e.Text}
	}
	return pduResult{err.Error()}
}

// work is a transaction that is being worked through.
type work struct {
	origin, txnID string
	rooms         map[string][]*pdu.Event
	order         []string // of the rooms
	edus          []json.RawMessage
	left          atomic.Int64 // parts that are not done
	failed        atomic.Bool  // a part is to be tried again after a restart
}

func (a *API) work(origin, txnID string) *work {
	return &work{origin: origin, txnID: txnID, rooms: map[string][]*pdu.Event{}}
}

func (w *work) empty() bool { return len(w.rooms) == 0 && len(w.edus) == 0 }

func (w *work) size() int {
	n := 1
	for _, list := range w.rooms {
		n += len(list)
	}
	return n
}

// sort finds the room of an event and reads it by the room's version. An event of a room that this server is not in
// may still end an invite or knock of a local user.
func (a *API) sort(ctx context.Context, w *work, raw json.RawMessage) (id string, err error) {
	named := gjson.GetBytes(raw, "event_id").Str
	roomID := gjson.GetBytes(raw, "room_id").Str
	if roomID == "" {
		return named, mxerr.InvalidParam("The event has no room_id")
	}
	a.entering.wait(ctx, roomID)
	room, err := a.rooms.Room(ctx, roomID)
	if errors.Is(err, roomserver.ErrUnknownRoom) || err == nil && !room.Resident() {
		return a.sortOutside(ctx, w, roomID, raw)
	}
	if err != nil {
		return named, err
	}
	p, err := pdu.Parse(room.Version, raw)
	if err != nil {
		return named, mxerr.InvalidParam("The event does not have the format of its room version: " + err.Error())
	}
	ok, err := a.allowed(ctx, room, w.origin)
	if err == nil && !ok {
		err = mxerr.Forbidden("The room's access control list denies your server")
	}
	if err != nil {
		return p.ID, err
	}
	w.add(p)
	return p.ID, nil
}

func (w *work) add(p *pdu.Event) {
	if w.rooms[p.RoomID] == nil {
		w.order = append(w.order, p.RoomID)
	}
	w.rooms[p.RoomID] = append(w.rooms[p.RoomID], p)
}

// sortOutside is sort for a room that this server is not in.
func (a *API) sortOutside(ctx context.Context, w *work, roomID string, raw json.RawMessage) (id string, err error) {
	user := gjson.GetBytes(raw, "state_key").Str
	unknown := mxerr.NotFound("This server is not in that room")
	if gjson.GetBytes(raw, "type").Str != "m.room.member" || !a.rooms.IsLocal(user) {
		return gjson.GetBytes(raw, "event_id").Str, unknown
	}
	o, err := a.outside(ctx, user, roomID)
	if err != nil || o == nil {
		return gjson.GetBytes(raw, "event_id").Str, errors.Join(err, unknown)
	}
	p, err := pdu.Parse(o.Version, raw)
	if err != nil {
		return "", mxerr.InvalidParam("The event does not have the format of its room version: " + err.Error())
	}
	w.add(p)
	return p.ID, nil
}

// begin hands the parts of a transaction to their lanes: one for each room that the server writes to, one for its EDUs.
func (a *API) begin(w *work) {
	ctx := a.background
	w.left.Store(int64(len(w.order)) + 1)
	for _, roomID := range w.order {
		log := a.log.WithFields(logrus.Fields{"origin": w.origin, "room_id": roomID})
		signed := a.lookAhead(func() []*pdu.Event { return a.signed(ctx, log, w.rooms[roomID]) })
		a.lanes.Add(ctx, w.origin+" "+roomID, func(ctx context.Context) {
			a.finish(ctx, w, a.receive(ctx, log, w.origin, roomID, signed()))
		})
	}
	a.lanes.Add(ctx, w.origin, func(ctx context.Context) {
		for _, raw := range w.edus {
			a.takeEDU(ctx, w.origin, raw)
		}
		a.finish(ctx, w, nil)
	})
}

// lookAhead checks the signatures of a part while its lane is still at work on those before it, unless as many are being
// checked already; then that waits for the lane.
func (a *API) lookAhead(check func() []*pdu.Event) (checked func() []*pdu.Event) {
	checked = sync.OnceValue(check)
	a.lanes.Ahead(func() { checked() })
	return checked
}

// finish ends one part of a transaction.
func (a *API) finish(ctx context.Context, w *work, err error) {
	if err != nil {
		w.failed.Store(true)
		if ctx.Err() == nil {
			a.log.WithError(err).WithField("origin", w.origin).Error("a transaction could not be worked through; it will be tried again after a restart")
		}
	}
	if w.left.Add(-1) > 0 {
		return
	}
	defer a.lanes.Release(w.origin, w.size())
	if w.failed.Load() {
		return
	}
	if err := a.inbox.Done(ctx, w.origin, w.txnID); err != nil && ctx.Err() == nil {
		a.log.WithError(err).Error("a transaction was worked through, but is not marked so")
	}
}

// takeEDU hands an EDU to its handler. A handler's failure harms no other EDU.
func (a *API) takeEDU(ctx context.Context, origin string, raw json.RawMessage) {
	edu := gjson.ParseBytes(raw)
	content := edu.Get("content")
	handler := a.edus[edu.Get("edu_type").Str]
	if handler == nil || !content.IsObject() {
		return
	}
	err := httpapi.CheckLegible([]byte(content.Raw)) // a message to a device is passed on as it stands, and signatures cover any digits
	if err == nil {
		err = handler(ctx, origin, json.RawMessage(content.Raw))
	}
	if err != nil && ctx.Err() == nil {
		a.log.WithError(err).WithFields(map[string]any{"origin": origin, "edu_type": edu.Get("edu_type").Str}).Info("an EDU was refused")
	}
}

// runInbound works through what was answered before the last stop, and forgets old transactions, until ctx ends.
func (a *API) runInbound(ctx context.Context) {
	a.resume(ctx)
	tick := time.NewTicker(time.Hour)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			a.stop()
			a.lanes.Wait()
			return
		case <-tick.C:
		}
		if err := a.inbox.Forget(ctx, rememberTransactions); err != nil && ctx.Err() == nil {
			a.log.WithError(err).Warn("old transactions could not be forgotten and will be later")
		}
	}
}

// resume begins with the transactions that were open at the last stop.
func (a *API) resume(ctx context.Context) {
	err := a.inbox.Open(ctx, func(t inbox.Transaction) {
		var body staged
		if err := json.Unmarshal(t.Body, &body); err != nil {
			a.log.WithError(err).Error("a kept transaction cannot be read")
			return
		}
		w := a.work(t.Origin, t.TxnID)
		for _, raw := range body.PDUs {
			if _, err := a.sort(ctx, w, raw); err != nil {
				a.log.WithError(err).Debug("an event of a kept transaction is not wanted any more")
			}
		}
		w.edus = body.EDUs
		if a.lanes.Admit(ctx, w.origin, w.size(), maxOwed) {
			a.begin(w)
		}
	})
	if err != nil && ctx.Err() == nil {
		a.log.WithError(err).Error("transactions that were answered before the last stop cannot be read")
	}
}
