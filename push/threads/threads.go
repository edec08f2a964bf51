package threads

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"net/http"

	"github.com/myelin-im/myelin/accounts"
	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/internal/ratelimit"
	"github.com/myelin-im/myelin/push"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/storage"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Schema is the part of the database that belongs to thread subscriptions.
var Schema = storage.Schema{Feature: "thread_subscriptions", FS: migrations}

// API serves the endpoints of this package.
type API struct {
	db    *storage.DB
	rooms *roomserver.Server
}

// New makes the API.
func New(db *storage.DB, rooms *roomserver.Server) *API { return &API{db: db, rooms: rooms} }

// Hooks is what becomes of subscriptions with accounts.
func Hooks() accounts.Hooks {
	return accounts.Hooks{Deactivated: func(tx *storage.Tx, userID string, _ bool) error {
		_, err := tx.Exec(`DELETE FROM thread_subscriptions WHERE user_id = $1`, userID)
		return err
	}}
}

// RoomRemoved deletes up to limit subscriptions in a room that is gone.
func RoomRemoved(tx *storage.Tx, room int64, _ string, limit int) (int64, error) {
	return tx.Exec(`DELETE FROM thread_subscriptions WHERE (user_id, room, thread) IN (
		SELECT user_id, room, thread FROM thread_subscriptions WHERE room = $1 LIMIT $2)`, room, int64(limit))
}

// Endpoints is the table of routes.
func (a *API) Endpoints() []httpapi.Endpoint {
	const path = "/_matrix/client/unstable/io.element.msc4306/rooms/{roomId}/thread/{eventId}/subscription"
	return []httpapi.Endpoint{
		httpapi.New(http.MethodGet, path, httpapi.User, ratelimit.Read, a.get),
		httpapi.New(http.MethodPut, path, httpapi.User, ratelimit.Account, a.put),
		httpapi.New(http.MethodDelete, path, httpapi.User, ratelimit.Account, a.delete),
	}
}

type threadRequest struct {
	RoomID string `path:"roomId"`
	Thread string `path:"eventId"`
}

var errNoThread = mxerr.NotFound("There is no such thread")

// thread finds the thread of a request. Any event that the user may see and that is in no thread itself can begin one,
// since clients subscribe while they send the first reply.
func (a *API) thread(ctx context.Context, by *httpapi.Caller, in *threadRequest) (*roomserver.Room, *roomserver.Event, error) {
	room, err := a.rooms.Room(ctx, in.RoomID)
	if errors.Is(err, roomserver.ErrUnknownRoom) {
		return nil, nil, errNoThread
	}
	if err != nil {
		return nil, nil, err
	}
	root, err := a.visible(ctx, by, room, in.Thread)
	if err != nil {
		return nil, nil, err
	}
	if root == nil || root.Relation().Type == "m.thread" {
		return nil, nil, errNoThread
	}
	return room, root, nil
}

// visible returns an event that the user may see, nil if there is none.
func (a *API) visible(ctx context.Context, by *httpapi.Caller, room *roomserver.Room, id string) (*roomserver.Event, error) {
	e, err := a.rooms.Event(ctx, room, id)
	if errors.Is(err, roomserver.ErrUnknownEvent) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	v, err := a.rooms.Viewer(ctx, room, by.UserID, room.Head().Pos)
	if err != nil {
		return nil, err
	}
	if ok, err := v.Sees(ctx, e); !ok || err != nil {
		return nil, err
	}
	return e, nil
}

// state is what is stored of a user and a thread.
type state struct {
	known, subscribed, automatic bool
	pos                          int64
}

func read(tx *storage.Tx, user string, room int64, thread string) (s state, err error) {
	s.known, err = tx.Get(`SELECT subscribed, automatic, pos FROM thread_subscriptions WHERE user_id = $1 AND room = $2 AND thread = $3`,
		[]any{user, room, thread}, &s.subscribed, &s.automatic, &s.pos)
	return s, err
}

// write stores a state at a new position.
func write(tx *storage.Tx, user string, room int64, thread string, subscribed, automatic bool) error {
	pos, err := tx.Position()
	if err != nil {
		return err
	}
	tx.Notice(storage.Notice{Kind: storage.AccountData, User: user})
	if err := push.SetSubscribed(tx, user, thread, subscribed); err != nil {
		return err
	}
	_, err = tx.Exec(`INSERT INTO thread_subscriptions (user_id, room, thread, pos, subscribed, automatic) VALUES ($1, $2, $3, $4, $5, $6)
		ON CONFLICT (user_id, room, thread) DO UPDATE SET pos = excluded.pos, subscribed = excluded.subscribed, automatic = excluded.automatic`,
		user, room, thread, pos, subscribed, automatic)
	return err
}

type getResponse struct {
	Automatic bool `json:"automatic"`
}

// get: MSC4306, GET /rooms/{roomId}/thread/{eventId}/subscription.
func (a *API) get(ctx context.Context, by *httpapi.Caller, in *threadRequest) (*getResponse, error) {
	room, root, err := a.thread(ctx, by, in)
	if err != nil {
		return nil, err
	}
	var s state
	err = a.db.Read(ctx, func(tx *storage.Tx) (err error) {
		s, err = read(tx, by.UserID, room.NID, root.ID)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read a thread subscription: %w", err)
	}
	if !s.subscribed {
		return nil, mxerr.NotFound("You have not subscribed to this thread")
	}
	return &getResponse{s.automatic}, nil
}

type putRequest struct {
	threadRequest
	// Automatic is the event that caused the subscription, nil for one that the user asked for.
	Automatic *string `json:"automatic"`
}

// put: MSC4306, PUT /rooms/{roomId}/thread/{eventId}/subscription.
func (a *API) put(ctx context.Context, by *httpapi.Caller, in *putRequest) (*httpapi.Empty, error) {
	room, root, err := a.thread(ctx, by, &in.threadRequest)
	if err != nil {
		return nil, err
	}
	automatic := in.Automatic != nil
	var cause *roomserver.Event
	if automatic {
		if cause, err = a.cause(ctx, by, room, root, *in.Automatic); err != nil {
			return nil, err
		}
	}
	conflict := false
	err = a.db.Write(ctx, func(tx *storage.Tx) error {
		conflict = false
		if err := tx.Lock("thread subscriptions of " + by.UserID); err != nil {
			return err
		}
		s, err := read(tx, by.UserID, room.NID, root.ID)
		if err != nil || s.subscribed && (automatic || !s.automatic) {
			return err
		}
		// What the user unsubscribed from stays so until something new happens. What was fetched from another server takes a
		// place in the past.
		if conflict = automatic && s.known && !s.subscribed && cause.Anchor <= s.pos; conflict {
			return nil
		}
		return write(tx, by.UserID, room.NID, root.ID, true, automatic)
	})
	if err != nil {
		return nil, fmt.Errorf("subscribe to a thread: %w", err)
	}
	if conflict {
		return nil, mxerr.New(http.StatusConflict, "IO.ELEMENT.MSC4306.M_CONFLICTING_UNSUBSCRIPTION", "You have unsubscribed from this thread since")
	}
	return nil, nil
}

// cause returns the event in the thread that caused a subscription.
func (a *API) cause(ctx context.Context, by *httpapi.Caller, room *roomserver.Room, root *roomserver.Event, id string) (*roomserver.Event, error) {
	notInThread := mxerr.New(http.StatusBadRequest, "IO.ELEMENT.MSC4306.M_NOT_IN_THREAD", "That event is not in the thread")
	e, err := a.visible(ctx, by, room, id)
	if err != nil {
		return nil, err
	}
	if e == nil {
		return nil, notInThread
	}
	thread, err := a.rooms.ThreadRoot(ctx, room, e)
	if err != nil {
		return nil, err
	}
	if thread != root.ID {
		return nil, notInThread
	}
	return e, nil
}

// delete: MSC4306, DELETE /rooms/{roomId}/thread/{eventId}/subscription.
func (a *API) delete(ctx context.Context, by *httpapi.Caller, in *threadRequest) (*httpapi.Empty, error) {
	room, root, err := a.thread(ctx, by, in)
	if err != nil {
		return nil, err
	}
	err = a.db.Write(ctx, func(tx *storage.Tx) error {
		if err := tx.Lock("thread subscriptions of " + by.UserID); err != nil {
			return err
		}
		s, err := read(tx, by.UserID, room.NID, root.ID)
		if err != nil || !s.subscribed {
			return err
		}
		return write(tx, by.UserID, room.NID, root.ID, false, false)
	})
	if err != nil {
		return nil, fmt.Errorf("unsubscribe from a thread: %w", err)
	}
	return nil, nil
}

// Change is what became of a user's subscription to a thread.
type Change struct {
	RoomID, Thread string
	Subscribed     bool
	Automatic      bool
	// Pos is its log position.
	Pos int64
}

// Changes returns the latest limit changes of a user's subscriptions at positions in (after, upTo], the newest first,
// each thread once, in its state of now. all tells whether there are no more.
func Changes(tx *storage.Tx, user string, after, upTo int64, limit int) (changes []Change, all bool, err error) {
	rows := tx.Query(`SELECT r.room_id, t.thread, t.subscribed, t.automatic, t.pos FROM thread_subscriptions t JOIN rooms r ON r.nid = t.room
		WHERE t.user_id = $1 AND t.pos > $2 AND t.pos <= $3 ORDER BY t.pos DESC LIMIT $4`, user, after, upTo, int64(limit)+1)
	for rows.Next() {
		var c Change
		rows.Scan(&c.RoomID, &c.Thread, &c.Subscribed, &c.Automatic, &c.Pos)
		changes = append(changes, c)
	}
	if all = len(changes) <= limit; !all {
		changes = changes[:limit]
	}
	return changes, all, rows.Close()
}
