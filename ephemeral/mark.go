package ephemeral

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/myelin-im/myelin/accounts"
	"github.com/myelin-im/myelin/internal/canonicaljson"
	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/storage"
)

const fullyReadType = "m.fully_read"

var kinds = map[string]Kind{"m.read": Read, "m.read.private": Private, fullyReadType: FullyRead}

type receiptRequest struct {
	RoomID  string `path:"roomId"`
	Type    string `path:"receiptType"`
	EventID string `path:"eventId"`
	// Thread is decoded by hand, because all that is wrong with it is M_INVALID_PARAM.
	Thread json.RawMessage `json:"thread_id"`
}

// thread returns the thread of the receipt.
func (in *receiptRequest) thread(kind Kind) (string, error) {
	if in.Thread == nil {
		return Unthreaded, nil
	}
	var thread string
	if json.Unmarshal(in.Thread, &thread) != nil || thread == "" || len(thread) > maxThread {
		return "", mxerr.InvalidParam("thread_id must be a non-empty string")
	}
	if kind == FullyRead {
		return "", mxerr.InvalidParam("The read marker has no thread_id")
	}
	return thread, nil
}

// maxThread bounds the bytes of a thread ID, which is an event ID.
const maxThread = 255

// postReceipt: client-server API v1.19, POST /rooms/{roomId}/receipt/{receiptType}/{eventId}.
func (a *API) postReceipt(ctx context.Context, by *httpapi.Caller, in *receiptRequest) (*httpapi.Empty, error) {
	kind, ok := kinds[in.Type]
	if !ok {
		return nil, mxerr.InvalidParam("The receipt type must be m.read, m.read.private or m.fully_read")
	}
	thread, err := in.thread(kind)
	if err != nil {
		return nil, err
	}
	return nil, a.mark(ctx, by, in.RoomID, []mark{{kind, thread, in.EventID}})
}

type readMarkersRequest struct {
	RoomID    string `path:"roomId"`
	FullyRead string `json:"m.fully_read"`
	Read      string `json:"m.read"`
	Private   string `json:"m.read.private"`
}

// postReadMarkers: client-server API v1.19, POST /rooms/{roomId}/read_markers.
func (a *API) postReadMarkers(ctx context.Context, by *httpapi.Caller, in *readMarkersRequest) (*httpapi.Empty, error) {
	var marks []mark
	for _, m := range []mark{{FullyRead, Unthreaded, in.FullyRead}, {Read, Unthreaded, in.Read}, {Private, Unthreaded, in.Private}} {
		if m.eventID != "" {
			marks = append(marks, m)
		}
	}
	return nil, a.mark(ctx, by, in.RoomID, marks)
}

// mark is a place that a client says the user has read up to.
type mark struct {
	kind    Kind
	thread  string
	eventID string
}

// mark moves receipts and read marker of the caller, as one unit. What would move back stays where it is.
func (a *API) mark(ctx context.Context, by *httpapi.Caller, roomID string, marks []mark) error {
	room, err := a.enter(ctx, by, roomID)
	if err != nil {
		return err
	}
	receipts := make([]Receipt, len(marks))
	for i, m := range marks {
		e, err := a.visible(ctx, room, by.UserID, m.eventID)
		if err != nil {
			return err
		}
		if err := a.checkThread(ctx, room, e, m.thread); err != nil {
			return err
		}
		receipts[i] = Receipt{User: by.UserID, Kind: m.kind, Thread: m.thread, EventID: e.ID, At: e.Token(), TS: a.now().UnixMilli()}
	}
	a.active(by.UserID)
	if receipts, err = a.forward(ctx, room, receipts); err != nil || len(receipts) == 0 {
		return err
	}
	err = a.db.Write(ctx, func(tx *storage.Tx) error { return putMarks(tx, room, receipts) })
	if err != nil {
		return fmt.Errorf("mark %s as read: %w", roomID, err)
	}
	return nil
}

// visible returns an event that the user may see, as the room's timeline has it.
func (a *API) visible(ctx context.Context, room *roomserver.Room, user, eventID string) (*roomserver.Event, error) {
	missing := mxerr.NotFound("Event not found")
	e, err := a.rooms.Event(ctx, room, eventID)
	if errors.Is(err, roomserver.ErrUnknownEvent) {
		return nil, missing
	}
	if err != nil {
		return nil, err
	}
	v, err := a.rooms.Viewer(ctx, room, user, room.Head().Pos)
	if err != nil {
		return nil, err
	}
	if ok, err := v.Sees(ctx, e); err != nil {
		return nil, err
	} else if !ok || e.Anchor == 0 {
		return nil, missing
	}
	return e, nil
}

// checkThread verifies that an event belongs to the thread of a receipt. A root, which is part of the main timeline,
// is taken as the beginning of its own thread as well.
func (a *API) checkThread(ctx context.Context, room *roomserver.Room, e *roomserver.Event, thread string) error {
	if thread == Unthreaded || thread == e.ID {
		return nil
	}
	root, err := a.rooms.ThreadRoot(ctx, room, e)
	if err != nil {
		return err
	}
	if root == "" {
		root = Main
	}
	if root != thread {
		return mxerr.InvalidParam("The event is not related to the thread of thread_id")
	}
	return nil
}

// forward returns those receipts of one user that lie before what is stored, by what memory knows: most of what
// clients repeat need not be written.
func (a *API) forward(ctx context.Context, room *roomserver.Room, receipts []Receipt) ([]Receipt, error) {
	if len(receipts) == 0 {
		return nil, nil
	}
	stored, err := a.receipts.own.Get(ctx, member{room.NID, receipts[0].User})
	if err != nil {
		return nil, err
	}
	var ahead []Receipt
	for i := range receipts {
		behind := false
		for j := range stored {
			behind = behind || stored[j].same(&receipts[i]) && !stored[j].At.Before(receipts[i].At)
		}
		if !behind {
			ahead = append(ahead, receipts[i])
		}
	}
	return ahead, nil
}

// putMarks stores receipts of one user in a Write.
func putMarks(tx *storage.Tx, room *roomserver.Room, receipts []Receipt) error {
	for i := range receipts {
		r := &receipts[i]
		moved, err := putReceipt(tx, room.NID, r)
		if err != nil {
			return err
		}
		if moved && r.Kind == FullyRead {
			content := append(canonicaljson.AppendString([]byte(`{"event_id":`), r.EventID), '}')
			if err := accounts.PutAccountData(tx, r.User, room.ID, fullyReadType, content); err != nil {
				return fmt.Errorf("store read marker: %w", err)
			}
		}
	}
	return nil
}
