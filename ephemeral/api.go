package ephemeral

import (
	"context"
	"crypto/rand"
	"embed"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/myelin-im/myelin/accounts"
	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/internal/ratelimit"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/storage"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Schema is the part of the database that belongs to this package.
var Schema = storage.Schema{Feature: "ephemeral", FS: migrations}

// Config is what an operator decides.
type Config struct {
	// Presence tells users who share a room when the others are online. Without it everybody is offline.
	Presence bool
}

// Deps are the other parts of the server that this package stands on.
type Deps struct {
	// DB must have been opened with Schema.
	DB *storage.DB
	// Rooms knows who is where.
	Rooms *roomserver.Server
	// Log gets what operators should know.
	Log *logrus.Entry
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Listener hears of changes that are not in the log.
type Listener struct {
	// Typing says that who types in a room has changed.
	Typing func(room int64)
	// Presence says that the presence of users has changed, and in which rooms others may want to know at once.
	Presence func(users []string, rooms []int64)
}

// API is receipts, typing and presence of one server. It is safe for concurrent use.
type API struct {
	db    *storage.DB
	rooms *roomserver.Server
	log   *logrus.Entry
	now   func() time.Time
	boot  int64

	receipts *receiptStore
	waiting  waitingRooms
	typing   typing
	presence *presence // nil if it is off
	listener Listener
	kick     chan struct{} // there is something to do in the background
}

// New makes the API. It must be called before the first write.
func New(cfg Config, deps Deps) (*API, error) {
	if deps.DB == nil || deps.Rooms == nil || deps.Log == nil {
		return nil, errors.New("ephemeral: database, rooms and log are required")
	}
	if deps.Now == nil {
		deps.Now = time.Now
	}
	a := &API{
		db: deps.DB, rooms: deps.Rooms, log: deps.Log, now: deps.Now,
		typing: newTyping(), kick: make(chan struct{}, 1),
		listener: Listener{Typing: func(int64) {}, Presence: func([]string, []int64) {}},
	}
	var b [4]byte
	if _, err := rand.Read(b[:]); err != nil {
		return nil, fmt.Errorf("ephemeral: choose a number for this boot: %w", err)
	}
	a.boot = int64(binary.LittleEndian.Uint32(b[:])) + 1
	a.receipts = newReceiptStore(deps.DB)
	if cfg.Presence {
		a.presence = newPresence()
	}
	deps.DB.Subscribe(a.committed)
	return a, nil
}

// Listen adds somebody who hears of changes. It must be called before the first request is served.
func (a *API) Listen(l Listener) {
	before := a.listener
	a.listener = Listener{
		Typing:   func(room int64) { before.Typing(room); l.Typing(room) },
		Presence: func(users []string, rooms []int64) { before.Presence(users, rooms); l.Presence(users, rooms) },
	}
}

// Boot is a number of this process, above 0. Stamps of typing and presence mean nothing in another.
func (a *API) Boot() int64 { return a.boot }

// Endpoints lists the endpoints of this package.
func (a *API) Endpoints() []httpapi.Endpoint {
	const v3 = "/_matrix/client/v3"
	const presence = v3 + "/presence/{userId}/status"
	return []httpapi.Endpoint{
		httpapi.New("POST", v3+"/rooms/{roomId}/receipt/{receiptType}/{eventId}", httpapi.User, ratelimit.Ephemeral, a.postReceipt),
		httpapi.New("POST", v3+"/rooms/{roomId}/read_markers", httpapi.User, ratelimit.Ephemeral, a.postReadMarkers),
		httpapi.New("PUT", v3+"/rooms/{roomId}/typing/{userId}", httpapi.User, ratelimit.Ephemeral, a.putTyping),
		httpapi.New("GET", presence, httpapi.User, ratelimit.Read, a.getPresence),
		httpapi.New("PUT", presence, httpapi.User, ratelimit.Ephemeral, a.putPresence),
	}
}

// committed takes note of a batch. It is called in commit order, before the log's head advances.
func (a *API) committed(batch []storage.Notice, _ int64) {
	a.receipts.committed(batch)
	for i := range batch {
		switch n := &batch[i]; n.Kind {
		case storage.Event:
			if a.waiting.arrived(n.Room) {
				a.wake()
			}
			if a.presence != nil {
				a.sent(n)
			}
		case storage.Membership:
			a.membershipChanged(n.Room, n.User)
		}
	}
}

// membershipChanged makes those who leave stop typing, and shows those who join to the others.
func (a *API) membershipChanged(nid int64, user string) {
	room := a.rooms.ActiveRoom(nid)
	if room == nil {
		return // one that this server is not in, or that nobody has looked at for long
	}
	joined := room.HasLocalMember(user)
	if !joined && a.typing.set(nid, user, time.Time{}) {
		a.listener.Typing(nid)
	}
	if joined && a.presence != nil && a.presence.showAgain(user) {
		a.wake()
	}
}

// Run does what goes on in the background until ctx ends: typing ends, presence changes with time, status messages
// are written down, receipts that wait find their events.
func (a *API) Run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-a.kick:
		case <-timer.C:
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 1500*time.Millisecond)
			a.writeStatuses(last)
			cancel()
			return
		}
		timer.Reset(max(a.step(ctx), minPause))
	}
}

const (
	// minPause keeps the background from running for every single change, maxPause is how long it sleeps when there is
	// nothing to do.
	minPause = 20 * time.Millisecond
	maxPause = time.Hour
)

// step does what is due and returns for how long nothing else will be, unless somebody calls wake.
func (a *API) step(ctx context.Context) time.Duration {
	pause := min(maxPause, a.expireTyping(), a.settleWaiting(ctx))
	if a.presence != nil {
		pause = min(pause, a.stepPresence(ctx))
	}
	return pause
}

// wake makes the background look.
func (a *API) wake() {
	select {
	case a.kick <- struct{}{}:
	default:
	}
}

// enter returns the room of a request whose caller must be joined to it. Unknown rooms are refused like others.
func (a *API) enter(ctx context.Context, by *httpapi.Caller, roomID string) (*roomserver.Room, error) {
	room, err := a.rooms.Room(ctx, roomID)
	if errors.Is(err, roomserver.ErrUnknownRoom) || err == nil && !room.HasLocalMember(by.UserID) {
		return nil, mxerr.Forbidden("You are not in that room")
	}
	return room, err
}

// Hooks is what becomes of this package's data with accounts.
func (a *API) Hooks() accounts.Hooks {
	return accounts.Hooks{Deactivated: func(tx *storage.Tx, userID string, _ bool) error {
		return putStatuses(tx, map[string]string{userID: ""})
	}}
}
