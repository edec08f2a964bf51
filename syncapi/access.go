package syncapi

import (
	"cmp"
	"context"
	"errors"
	"slices"

	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/roomserver/snapshot"
)

// access is how far a user may look into a room: members up to the present, those who left up to their leave, also when
// they are invited again, others only where history is world-readable.
type access struct {
	room *roomserver.Room
	// membership is the user's; Leave for someone who never was in the room.
	membership string
	// upTo is the last position whose state the user may see.
	upTo int64
	// root is the state there.
	root snapshot.Ref
}

var errNoAccess = mxerr.Forbidden("You are not in that room")

// enter decides on access. Rooms that do not exist are refused like those that the user may not see.
func (a *API) enter(ctx context.Context, by *httpapi.Caller, roomID string) (*access, error) {
	room, err := a.rooms.Room(ctx, roomID)
	if errors.Is(err, roomserver.ErrUnknownRoom) {
		return nil, errNoAccess
	}
	if err != nil {
		return nil, err
	}
	head := room.Head()
	acc := &access{room: room, upTo: head.Pos, root: head.State}
	e, err := a.rooms.StateEvent(ctx, room, head.State, "m.room.member", by.UserID)
	if err != nil {
		return nil, err
	}
	acc.membership = roomserver.Leave
	if e != nil {
		acc.membership = e.Membership()
	}
	if acc.membership == roomserver.Join {
		return acc, nil
	}
	visibility, err := a.rooms.HistoryVisibility(ctx, room, head.State)
	if err != nil {
		return nil, err
	}
	if visibility == roomserver.WorldReadable {
		return acc, nil
	}
	// Someone who was joined once sees the room as it was at the end of that, unless they have forgotten it. An invite
	// or a knock since neither takes that away nor lets them see more: the rest is for those who join.
	if e == nil {
		return nil, errNoAccess
	}
	forgotten, err := a.forgotten(ctx, room, by.UserID)
	if err != nil {
		return nil, err
	}
	end, err := a.endOfStay(ctx, room, e)
	if err != nil {
		return nil, err
	}
	if forgotten || end == nil {
		return nil, errNoAccess
	}
	acc.upTo, acc.root = end.Anchor, end.StateAfter
	return acc, nil
}

// enterWhole is enter for what takes all members of the room: it waits until they are known (MSC3902).
func (a *API) enterWhole(ctx context.Context, by *httpapi.Caller, roomID string) (*access, error) {
	acc, err := a.enter(ctx, by, roomID)
	if err != nil || !acc.room.PartialAt(a.db.Head()) {
		return acc, err
	}
	if err := a.rooms.AwaitWhole(ctx, acc.room); err != nil {
		return nil, err
	}
	return a.enter(ctx, by, roomID)
}

// forgotten tells whether the user has left and forgotten a room.
func (a *API) forgotten(ctx context.Context, room *roomserver.Room, user string) (bool, error) {
	rooms, err := a.rooms.UserRooms(ctx, user)
	if err != nil {
		return false, err
	}
	i, found := slices.BinarySearchFunc(rooms, room.NID, func(r roomserver.UserRoom, nid int64) int { return cmp.Compare(r.NID, nid) })
	return found && rooms[i].Forgotten, nil
}

// maxMembershipWalk bounds how many membership events of one user endOfStay looks through.
const maxMembershipWalk = 100

// endOfStay goes back from a membership event of someone who is not joined to the one that ended their last stay in the
// room: a ban may follow a leave, which is what they may have seen last. It returns nil for someone who never joined.
func (a *API) endOfStay(ctx context.Context, room *roomserver.Room, e *roomserver.Event) (*roomserver.Event, error) {
	for range maxMembershipWalk {
		before, err := a.rooms.StateEvent(ctx, room, e.StateBefore, e.Type, *e.StateKey)
		if err != nil || before == nil {
			return nil, err
		}
		if before.Membership() == roomserver.Join {
			return e, nil
		}
		e = before
	}
	return nil, nil
}

// reader is how an answer outside /sync renders events for a caller.
func (a *API) reader(by *httpapi.Caller, v *roomserver.Viewer) *roomserver.Reader {
	return &roomserver.Reader{User: by.UserID, Device: by.DeviceID, RoomID: true, Now: a.now().UnixMilli(), Membership: v, Erased: a.accounts.Erased}
}
