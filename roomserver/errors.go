package roomserver

import (
	"errors"

	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/roomserver/authrules"
	"github.com/myelin-im/myelin/roomserver/pdu"
)

// buildError is the answer to a client whose event cannot be built.
func buildError(err error) error {
	switch {
	case errors.Is(err, pdu.ErrTooLarge):
		return mxerr.TooLarge("The event is too large").With(err)
	case errors.Is(err, pdu.ErrBadJSON), errors.Is(err, pdu.ErrFormat):
		return mxerr.BadJSON("The event content is not allowed in this room version: " + err.Error())
	}
	return err
}

// malformed are the rules that refuse an event for what it is, whoever sends it.
var malformed = map[string]bool{
	"create.prev_events": true, "member.malformed": true, "member.unknown": true,
	"power.integer": true, "power.maps": true, "power.users": true, "power.creators": true,
}

// notInRoom are the rules that refuse an event because its sender is not in the room.
var notInRoom = map[string]bool{"sender": true, "invite.sender": true, "leave.sender": true, "ban.sender": true}

// authError is the answer to a client whose event the room's rules refuse.
func authError(err error) error {
	var refused *authrules.Error
	if errors.As(err, &refused) {
		if malformed[refused.Name] {
			return mxerr.BadJSON(refused.Reason).With(err)
		}
		if notInRoom[refused.Name] {
			return errNotInRoom().With(err)
		}
		return mxerr.Forbidden(refused.Reason).With(err)
	}
	return err
}
