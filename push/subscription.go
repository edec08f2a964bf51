package push

import (
	"errors"

	"github.com/myelin-im/myelin/push/rules"
	"github.com/myelin-im/myelin/storage"
)

// SetSubscribed tells the user's push rules that the user has subscribed to a thread, by the event ID of its root, or
// unsubscribed (MSC4306). Somebody whose rules are as large as can be is notified as before.
func SetSubscribed(tx *storage.Tx, user, root string, subscribed bool) error {
	refused, err := change(tx, user, func(o *rules.Overlay) error {
		o.SetSubscribed(root, subscribed)
		return nil
	})
	if err == nil && !errors.Is(refused, rules.ErrOverlayTooLarge) {
		err = refused
	}
	return err
}
