package roomserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/tidwall/gjson"

	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/storage"
)

// errAliasTaken answers a request for an alias that exists.
var errAliasTaken = mxerr.New(400, "M_ROOM_IN_USE", "The room alias is taken")

// claimAlias makes the alias part of the turn's unit: taken in the meantime, the whole unit fails.
func (t *Turn) claimAlias(alias, creator string) {
	t.unit.Require(`INSERT INTO room_aliases (alias, room_id, creator) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING`,
		[]any{alias, t.room.ID, creator}, 1, errAliasTaken)
}

// Alias is one local room alias.
type Alias struct{ Alias, RoomID, Creator string }

// LookupAlias finds a local alias; ok is false where there is none.
func (s *Server) LookupAlias(ctx context.Context, alias string) (a Alias, ok bool, err error) {
	err = s.db.Read(ctx, func(tx *storage.Tx) (err error) {
		a.Alias = alias
		ok, err = tx.Get(`SELECT room_id, creator FROM room_aliases WHERE alias = $1`, []any{alias}, &a.RoomID, &a.Creator)
		return err
	})
	if err != nil {
		return a, false, fmt.Errorf("look up alias: %w", err)
	}
	return a, ok, nil
}

// SetAlias makes a local alias for a room that this server knows. It fails with 409 M_UNKNOWN where it exists.
func (s *Server) SetAlias(ctx context.Context, a Alias) error {
	if _, err := s.Room(ctx, a.RoomID); err != nil {
		if errors.Is(err, ErrUnknownRoom) {
			return mxerr.NotFound("Unknown room")
		}
		return err
	}
	return s.db.Write(ctx, func(tx *storage.Tx) error {
		n, err := tx.Exec(`INSERT INTO room_aliases (alias, room_id, creator) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING`, a.Alias, a.RoomID, a.Creator)
		if err == nil && n == 0 {
			err = mxerr.New(409, "M_UNKNOWN", "The room alias is taken")
		}
		return err
	})
}

// DeleteAlias removes a local alias; removing one that does not exist is 404 M_NOT_FOUND.
func (s *Server) DeleteAlias(ctx context.Context, alias string) error {
	return s.db.Write(ctx, func(tx *storage.Tx) error {
		n, err := tx.Exec(`DELETE FROM room_aliases WHERE alias = $1`, alias)
		if err == nil && n == 0 {
			err = mxerr.NotFound("Unknown room alias")
		}
		return err
	})
}

// Aliases returns the local aliases of a room, sorted.
func (s *Server) Aliases(ctx context.Context, roomID string) (aliases []string, err error) {
	aliases, err = storage.ReadList[string](ctx, s.db, `SELECT alias FROM room_aliases WHERE room_id = $1 ORDER BY alias`, roomID)
	if err != nil {
		return nil, fmt.Errorf("aliases of %s: %w", roomID, err)
	}
	return aliases, nil
}

// CheckCanonicalAlias verifies that the local aliases, which an m.room.canonical_alias content adds over the current
// one, point to the room: 400 M_BAD_ALIAS otherwise (client-server API v1.19, m.room.canonical_alias).
func (s *Server) CheckCanonicalAlias(ctx context.Context, roomID string, content []byte, current *Event) error {
	had := map[string]bool{}
	if current != nil {
		for _, a := range aliasesIn(current.Content()) {
			had[a] = true
		}
	}
	for _, a := range aliasesIn(content) {
		if had[a] || !s.IsLocal(a) {
			continue
		}
		found, ok, err := s.LookupAlias(ctx, a)
		if err != nil {
			return err
		}
		if !ok || found.RoomID != roomID {
			return mxerr.New(400, "M_BAD_ALIAS", "The alias "+a+" does not point to this room")
		}
	}
	return nil
}

func aliasesIn(content []byte) (out []string) {
	if a := gjson.GetBytes(content, "alias").Str; a != "" {
		out = append(out, a)
	}
	for _, a := range gjson.GetBytes(content, "alt_aliases").Array() {
		out = append(out, a.Str)
	}
	return out
}

// DropCanonicalAlias takes an alias that was deleted out of the room's m.room.canonical_alias, in the name of a user. Where
// it is not in there, or the user may not change it, nothing happens.
func (s *Server) DropCanonicalAlias(ctx context.Context, roomID, user, alias string) error {
	_, err := s.Turn(ctx, roomID, func(t *Turn) error {
		current, err := t.State("m.room.canonical_alias", "")
		if err != nil || current == nil || !slices.Contains(aliasesIn(current.Content()), alias) {
			return err
		}
		content := map[string]any{}
		if err := json.Unmarshal(current.Content(), &content); err != nil {
			return fmt.Errorf("canonical alias of %s: %w", roomID, err)
		}
		if content["alias"] == alias {
			delete(content, "alias")
		}
		if alt, ok := content["alt_aliases"].([]any); ok {
			content["alt_aliases"] = slices.DeleteFunc(alt, func(a any) bool { return a == alias })
		}
		return t.appendState(user, "m.room.canonical_alias", "", content)
	})
	if e := mxerr.As(err); e != nil && e.Code == "M_FORBIDDEN" || errors.Is(err, ErrUnknownRoom) {
		return nil
	}
	return err
}
