package roomserver

import (
	"context"
	"errors"

	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/roomserver/authrules"
	"github.com/myelin-im/myelin/roomserver/pdu"
)

// errNotInRoom answers requests about rooms that the user is not in; unknown rooms get the same answer to the letter, so
// that nobody learns which rooms exist.
func errNotInRoom() *mxerr.Error { return mxerr.Forbidden("You are not in that room") }

// Send appends an event of a local user to a room and returns its id once it is on disk. A state event
// that would change nothing returns the id of the one that stands.
func (s *Server) Send(ctx context.Context, roomID string, d Draft) (string, error) {
	return s.once(ctx, d.Txn, roomID, func() (string, error) {
		var id string
		policed, err := s.policed(ctx, roomID)
		switch {
		case err != nil:
		case policed:
			var e *Event
			if e, err = s.sendPoliced(ctx, roomID, &d, func(t *Turn) (*pdu.Event, *Event, error) { return t.prepareDraft(&d) }); err == nil {
				id = e.ID
			}
		default:
			_, err = s.Turn(ctx, roomID, func(t *Turn) error {
				e, err := t.sendOrKeep(d)
				if err == nil {
					id = e.ID
				}
				return err
			})
		}
		if errors.Is(err, ErrUnknownRoom) {
			err = errNotInRoom()
		}
		return id, err
	})
}

// sendOrKeep appends a draft unless it is a state event equal to the current one.
func (t *Turn) sendOrKeep(d Draft) (*Event, error) {
	if d.StateKey != nil {
		old, err := t.State(d.Type, *d.StateKey)
		if err != nil {
			return nil, err
		}
		if old.repeats(&d) {
			return old, nil
		}
	}
	return t.Append(d)
}

// redactLocal checks that the sender of a redaction may redact its target, and notes it for the unit. A
// redaction whose target this server does not know waits for it, if the sender may redact what others have sent.
func (t *Turn) redactLocal(by *Event, targetID string) error {
	target, err := t.s.Event(t.ctx, t.room, targetID)
	if err != nil && !errors.Is(err, ErrUnknownEvent) {
		return err
	}
	levels, levelsErr := t.Levels()
	if levelsErr != nil {
		return levelsErr
	}
	if err != nil {
		// Another server of the room may have it, if there is one.
		if !t.room.shared(t.s.name) || levels.User(by.Sender) < levels.Redact() {
			return mxerr.NotFound("The event to redact is unknown")
		}
		t.unit.Add(redactionsTable, t.room.NID, eventKey(targetID), by.NID, false)
		return nil
	}
	// Nobody applies the redaction of a create event, and an access control list without content shuts out every server.
	if target.IsState() && (target.Type == "m.room.create" || target.Type == "m.room.server_acl") {
		return mxerr.Forbidden("Events of this type cannot be redacted")
	}
	// A local user's own events, not all those of the server: that rule is for servers to apply.
	if target.Sender != by.Sender && levels.User(by.Sender) < levels.Redact() {
		return mxerr.Forbidden("You may not redact this event")
	}
	if !authrules.CanRedact(by.Event, target.Event, levels) {
		return mxerr.Forbidden("You may not redact this event")
	}
	t.redacts = append(t.redacts, redaction{target, by})
	return nil
}
