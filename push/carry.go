package push

import (
	"errors"
	"fmt"

	"github.com/myelin-im/myelin/push/rules"
	"github.com/myelin-im/myelin/storage"
)

// CarryRules gives a user for a room, in a Write, the rules that they have for the room that it replaces. Rules that
// the user has for the new room already stay as they are, and so do all if there would be too many.
//
// spec: client-server-api v1.19 "Room Upgrades"
func CarryRules(tx *storage.Tx, user, from, to string) error {
	overlay, size, err := loadOverlay(tx, user, now)
	if err != nil || size == 0 || !overlay.CarryRoom(from, to) {
		return err
	}
	refused, err := change(tx, user, func(o *rules.Overlay) error {
		o.CarryRoom(from, to)
		return nil
	})
	if refused != nil && !errors.Is(refused, rules.ErrOverlayTooLarge) {
		return fmt.Errorf("carry push rules over: %w", refused)
	}
	return err
}
