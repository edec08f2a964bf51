package syncapi

import (
	"context"
	"errors"

	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/relations"
	"github.com/myelin-im/myelin/roomserver"
)

// relationships is POST /event_relationships (MSC2836, "Querying relationships"). An event that the user may not see is one
// that does not exist.
func (a *API) relationships(ctx context.Context, by *httpapi.Caller, in *relations.Request) (*rawJSON, error) {
	w, err := in.Walk()
	if err != nil {
		return nil, err
	}
	if in.AutoJoin && w.RoomID != "" {
		if err := a.autoJoin(ctx, by, w.RoomID); err != nil {
			return nil, err
		}
	}
	acc, err := a.threadAccess(ctx, by, w)
	if err != nil {
		return nil, err
	}
	room := acc.room
	if w.RoomID = room.ID; w.UpTo == 0 {
		w.UpTo = room.Head().Pos
	}
	viewer, err := a.rooms.Viewer(ctx, room, by.UserID, room.Head().Pos)
	if err != nil {
		return nil, err
	}
	tree := a.explorer.Tree(a.view(by.UserID, room, viewer), w)
	first, err := tree.Find(ctx, w.EventID, nil)
	if err != nil {
		return nil, err
	}
	if first == nil {
		return nil, mxerr.NotFound("Event not found")
	}
	thread, err := w.From(ctx, tree, first)
	if err != nil {
		return nil, err
	}
	out, err := a.appendThread(ctx, []byte(`{"events":[`), by, room, viewer, thread)
	if err != nil {
		return nil, err
	}
	answer := rawJSON(append(thread.AppendEnd(append(out, ']')), '}'))
	return &answer, nil
}

// autoJoin joins the caller to the room that they name, unless they are in it.
func (a *API) autoJoin(ctx context.Context, by *httpapi.Caller, roomID string) error {
	room, err := a.rooms.Room(ctx, roomID)
	if err == nil && room.HasLocalMember(by.UserID) || a.join == nil {
		return nil
	}
	if err != nil && !errors.Is(err, roomserver.ErrUnknownRoom) {
		return err
	}
	return a.join(ctx, by, roomID)
}

// threadAccess decides on access to the room of a walk.
func (a *API) threadAccess(ctx context.Context, by *httpapi.Caller, w *relations.Walk) (*access, error) {
	missing := mxerr.NotFound("Event not found")
	id := w.RoomID
	if id == "" {
		room, err := a.explorer.RoomOf(ctx, w.EventID)
		if errors.Is(err, roomserver.ErrUnknownEvent) {
			return nil, missing
		}
		if err != nil {
			return nil, err
		}
		id = room.ID
	}
	acc, err := a.enter(ctx, by, id)
	if errors.Is(err, errNoAccess) {
		return nil, missing
	}
	return acc, err
}

// appendThread appends the events of a thread. Of those that have no place here, it is not known whether the user was in the
// room at the time; if their senders asked for erasure, they are redacted.
func (a *API) appendThread(ctx context.Context, dst []byte, by *httpapi.Caller, room *roomserver.Room, v *roomserver.Viewer, thread *relations.Thread) ([]byte, error) {
	placed := keep(thread.Events, func(e *roomserver.Event) bool { return !e.Outlier() })
	here, err := a.bundling(ctx, by, room, v, placed)
	if err != nil {
		return nil, err
	}
	here.Unsigned = thread.Unsigned
	there := a.reader(by, nil)
	there.Unsigned = thread.Unsigned
	for i, e := range thread.Events {
		if i > 0 {
			dst = append(dst, ',')
		}
		r := here
		if e.Outlier() {
			r = there
			erased, err := a.accounts.Erased(ctx, e.Sender)
			if err != nil {
				return nil, err
			}
			if erased && !e.IsState() {
				e = e.AsRedacted()
			}
		}
		if dst, err = a.rooms.AppendClientEvent(ctx, dst, room, e, r); err != nil {
			return nil, err
		}
	}
	return dst, nil
}
