package roomserver

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/roomserver/pdu"
	"github.com/myelin-im/myelin/storage"
)

// Outside is a local user's invite to, or knock on, a room that this server is not in, or how that ended, or that they have
// left a room that was then removed. It is a record of the user's: there is no room state behind it.
type Outside struct {
	// User is the local user, RoomID and Version the room.
	User, RoomID string
	Version      *pdu.Version
	// Membership is invite, knock or, after the end, leave or ban.
	Membership string
	// Event is the membership event.
	Event *pdu.Event
	// Stripped is the JSON array of stripped state that came with the invite or knock.
	Stripped json.RawMessage
	// Pos is the position of the last change.
	Pos int64
	// Forgotten tells that the user forgot the room afterwards.
	Forgotten bool
	// NID is the number that the room had before it was removed; 0 if it was not.
	NID int64
}

// PutOutside keeps an invite that another server sent, or a knock that it accepted. An older one for the same
// room is replaced.
func (s *Server) PutOutside(ctx context.Context, o Outside) error {
	var state []json.RawMessage
	if len(o.Stripped) > 0 {
		if err := json.Unmarshal(o.Stripped, &state); err != nil {
			return mxerr.BadJSON("The stripped state is not a list").With(err)
		}
	}
	stripped, err := json.Marshal(append([]json.RawMessage{}, state...))
	if err != nil {
		return fmt.Errorf("stripped state of %s: %w", o.RoomID, err)
	}
	err = s.db.Write(ctx, func(tx *storage.Tx) error {
		pos, err := tx.Position()
		if err != nil {
			return err
		}
		_, err = tx.Exec(`INSERT INTO outside_memberships (user_id, room_id, version, membership, sender, event_id, event, stripped, pos, forgotten)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
			ON CONFLICT (user_id, room_id) DO UPDATE SET version = excluded.version, membership = excluded.membership, sender = excluded.sender,
				event_id = excluded.event_id, event = excluded.event, stripped = excluded.stripped, pos = excluded.pos, forgotten = excluded.forgotten`,
			o.User, o.RoomID, o.Version.ID, o.Membership, o.Event.Sender, o.Event.ID, o.Event.JSON(), stripped, pos, false)
		if err == nil {
			tx.Notice(storage.Notice{Pos: pos, Kind: storage.Membership, User: o.User})
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("keep the %s of %s to %s: %w", o.Membership, o.User, o.RoomID, err)
	}
	return nil
}

// RescindOutside ends an invite or knock by an event of another server: a leave or ban of the user. There is no state to
// judge it by, so it is accepted only if it cites the event that it ends and, for an invite, has the same sender;
// anything else is 403 M_FORBIDDEN.
func (s *Server) RescindOutside(ctx context.Context, user string, end *pdu.Event) error {
	all, err := s.OutsideOf(ctx, user)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(all, func(o Outside) bool { return o.RoomID == end.RoomID })
	if i < 0 {
		return mxerr.NotFound("There is no invite or knock to end")
	}
	o := all[i]
	cited := slices.Contains(end.AuthEventIDs(), o.Event.ID) || slices.Contains(end.PrevEventIDs(), o.Event.ID)
	m := end.Membership()
	sameSender := o.Membership != Invite || end.Sender == o.Event.Sender
	if !end.Is("m.room.member", user) || m != Leave && m != Ban || !cited || !sameSender {
		return mxerr.Forbidden("The event does not end the invite or knock")
	}
	// By now there may be another knock, which the user made after this end of the last one.
	return s.endOutside(ctx, user, end.RoomID, m, end, []byte(o.Event.ID))
}

// LeaveOutside makes a local user reject an invite or withdraw a knock for this server, whether or not the room's
// servers can be told. The event, if not nil, is the one that says so. ok is false where there is nothing to leave.
func (s *Server) LeaveOutside(ctx context.Context, user, roomID string, event *pdu.Event) (ok bool, err error) {
	err = s.endOutside(ctx, user, roomID, Leave, event, nil)
	if e := mxerr.As(err); e != nil && e.Code == "M_NOT_FOUND" {
		return false, nil
	}
	return err == nil, err
}

// endOutside changes an open invite or knock to its end, of the given event or (nil) whichever there is; event replaces the
// membership event, if it is known.
func (s *Server) endOutside(ctx context.Context, user, roomID, membership string, event *pdu.Event, of []byte) error {
	var id, raw []byte
	if event != nil {
		id, raw = []byte(event.ID), event.JSON()
	}
	err := s.db.Write(ctx, func(tx *storage.Tx) error {
		pos, err := tx.Position()
		if err != nil {
			return err
		}
		n, err := tx.Exec(`UPDATE outside_memberships SET membership = $1, pos = $2, event_id = COALESCE($3, event_id), event = COALESCE($4, event)
			WHERE user_id = $5 AND room_id = $6 AND (membership = $7 OR membership = $8) AND event_id = COALESCE($9, event_id)`,
			membership, pos, id, raw, user, roomID, Invite, Knock, of)
		if err != nil {
			return err
		}
		if n == 0 {
			return mxerr.NotFound("There is no invite or knock to end")
		}
		tx.Notice(storage.Notice{Pos: pos, Kind: storage.Membership, User: user})
		return nil
	})
	if err != nil {
		return fmt.Errorf("end the invite or knock of %s to %s: %w", user, roomID, err)
	}
	return nil
}

// OutsideOf returns the records of a user, by room id.
func (s *Server) OutsideOf(ctx context.Context, user string) (out []Outside, err error) {
	err = s.db.Read(ctx, func(tx *storage.Tx) error {
		out = nil
		rows := tx.Query(`SELECT room_id, version, membership, event_id, event, stripped, pos, forgotten, room
			FROM outside_memberships WHERE user_id = $1 ORDER BY room_id`, user)
		for rows.Next() {
			o := Outside{User: user}
			var version, id string
			var event, stripped []byte
			rows.Scan(&o.RoomID, &version, &o.Membership, &id, &event, &stripped, &o.Pos, &o.Forgotten, &o.NID)
			v, ok := pdu.Lookup(version)
			if !ok {
				continue // of a newer server that shared this database
			}
			o.Version, o.Stripped = v, stripped
			if o.Event, err = pdu.FromStore(v, event, id, false); err != nil {
				rows.Close()
				return err
			}
			out = append(out, o)
		}
		return rows.Close()
	})
	if err != nil {
		return nil, fmt.Errorf("invites and knocks of %s: %w", user, err)
	}
	return out, nil
}
