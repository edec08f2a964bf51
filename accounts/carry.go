package accounts

import (
	"encoding/json"
	"fmt"
	"slices"

	"github.com/myelin-im/myelin/storage"
)

// CarryRoomData gives a user for a room, in a Write, the tags that they gave the room that it replaces, and makes it
// a direct chat if that was one. Tags that the new room has already stay as they are.
//
// Spec: client-server API v1.19, "Room Upgrades".
func CarryRoomData(tx *storage.Tx, userID, from, to string) error {
	if err := tx.Lock("tags " + userID); err != nil {
		return err
	}
	tags, err := AccountDatum(tx, userID, from, tagType)
	if err != nil {
		return fmt.Errorf("read tags: %w", err)
	}
	own, err := AccountDatum(tx, userID, to, tagType)
	if err != nil {
		return fmt.Errorf("read tags: %w", err)
	}
	if tags != nil && own == nil {
		if err := PutAccountData(tx, userID, to, tagType, tags); err != nil {
			return fmt.Errorf("carry tags over: %w", err)
		}
	}
	return carryDirect(tx, userID, from, to)
}

const directType = "m.direct"

// carryDirect adds a room beside another one in the user's list of direct chats.
func carryDirect(tx *storage.Tx, userID, from, to string) error {
	content, err := AccountDatum(tx, userID, "", directType)
	if err != nil || content == nil {
		return err
	}
	// Clients may have written anything; what is not a list of rooms is kept as it is.
	chats := map[string]json.RawMessage{}
	if json.Unmarshal(content, &chats) != nil {
		return nil
	}
	changed := false
	for user, raw := range chats {
		var rooms []string
		if json.Unmarshal(raw, &rooms) != nil || !slices.Contains(rooms, from) || slices.Contains(rooms, to) {
			continue
		}
		if chats[user], err = json.Marshal(append(rooms, to)); err != nil {
			return fmt.Errorf("carry direct chats over: %w", err)
		}
		changed = true
	}
	if !changed {
		return nil
	}
	if content, err = json.Marshal(chats); err != nil {
		return fmt.Errorf("carry direct chats over: %w", err)
	}
	return PutAccountData(tx, userID, "", directType, content)
}
