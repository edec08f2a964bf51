package e2ee

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
	"sync/atomic"

	"github.com/myelin-im/myelin/internal/cache"
	"github.com/myelin-im/myelin/internal/canonicaljson"
	"github.com/myelin-im/myelin/storage"
)

const (
	// maxInbox bounds the messages that wait for a device, in bytes; each counts messageCost more than its length. A device
	// of an account with many rooms that is off for months stays far below.
	maxInbox    = 256 << 20
	messageCost = 1 << 10
	// maxDue bounds the inboxes that wait to be measured.
	maxDue = 256
	// inboxPage bounds the messages that are looked at or deleted together.
	inboxPage = 1000
	// senderTail is within how many bytes from the end of a message its sender is found.
	senderTail = 2 << 10
)

// overfull finds inboxes that have become too large. How large one is costs a look at all of it, so that it is measured
// only when so much has come as could have filled it, but at least a sixteenth of the limit.
type overfull struct {
	limit int64
	left  *cache.Cache[inboxKey, *atomic.Int64] // how much may come before the inbox is measured
	due   chan inboxKey
}

// grew notes that a message of a length comes to an inbox.
func (o *overfull) grew(key inboxKey, length int64) {
	left, known := o.left.Get(key)
	if !known {
		left = &atomic.Int64{}
		left.Store(o.limit / 16)
		left = o.left.GetOrPut(key, left, 1)
	}
	if left.Add(-length-messageCost) >= 0 {
		return
	}
	select {
	case o.due <- key:
		left.Store(o.limit / 16)
	default: // with the next message
	}
}

// boundInboxes measures inboxes until ctx ends.
func (a *API) boundInboxes(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case key := <-a.overfull.due:
			if err := a.boundInbox(ctx, key); err != nil && ctx.Err() == nil {
				a.log.WithError(err).WithField("user_id", key.user).Warn("a large inbox could not be bounded")
			}
		}
	}
}

// boundInbox deletes messages of an inbox that is too large: the oldest of those who sent most, until an eighth of the
// limit is free. So nobody who floods a device can push out what others sent to it.
func (a *API) boundInbox(ctx context.Context, key inboxKey) error {
	var size int64
	_, err := a.db.Get(ctx, `SELECT COALESCE(sum(length(event) + $3), 0) FROM to_device WHERE user_id = $1 AND device_id = $2`,
		[]any{key.user, key.device, int64(messageCost)}, &size)
	if err != nil {
		return fmt.Errorf("measure an inbox of %s: %w", key.user, err)
	}
	if size <= a.overfull.limit {
		if left, known := a.overfull.left.Get(key); known {
			left.Store(max(a.overfull.limit-size, a.overfull.limit/16))
		}
		return nil
	}
	waiting, err := a.waiting(ctx, key)
	if err != nil {
		return err
	}
	surplus := chooseSurplus(waiting, a.overfull.limit-a.overfull.limit/8)
	for part := range slices.Chunk(surplus, inboxPage) {
		err := a.db.Write(ctx, func(tx *storage.Tx) error {
			_, err := tx.Exec(`DELETE FROM to_device WHERE user_id = $1 AND device_id = $2 AND pos IN `+storage.In(len(part), 3),
				append([]any{key.user, key.device}, part...)...)
			return err
		})
		if err != nil {
			return fmt.Errorf("delete from an inbox of %s: %w", key.user, err)
		}
	}
	a.log.WithField("user_id", key.user).WithField("device_id", key.device).WithField("messages", len(surplus)).
		Warn("a device does not fetch its messages: the oldest of those who sent most were deleted")
	return nil
}

// waitingMessage is one in an inbox. Who is responsible for it is its sender or, of users of other servers, their server,
// which can have as many users as it likes.
type waitingMessage struct {
	pos, size   int64
	responsible string
}

// waiting lists what is in an inbox, in order.
func (a *API) waiting(ctx context.Context, key inboxKey) (list []waitingMessage, err error) {
	for more := true; more; {
		err = a.db.Read(ctx, func(tx *storage.Tx) error {
			after, before := int64(0), len(list)
			if before > 0 {
				after = list[before-1].pos
			}
			rows := tx.Query(`SELECT pos, length(event), substr(event, CASE WHEN length(event) > $4 THEN length(event) - $4 ELSE 1 END) FROM to_device
				WHERE user_id = $1 AND device_id = $2 AND pos > $3 ORDER BY pos LIMIT $5`, key.user, key.device, after, int64(senderTail), int64(inboxPage))
			for rows.Next() {
				var m waitingMessage
				var tail []byte
				rows.Scan(&m.pos, &m.size, &tail)
				m.size += messageCost
				m.responsible = a.responsible(tail)
				list = append(list, m)
			}
			more = len(list)-before == inboxPage
			return rows.Close()
		})
		if err != nil {
			return nil, fmt.Errorf("look into an inbox of %s: %w", key.user, err)
		}
	}
	return list, nil
}

// responsible finds out who is responsible for a message, of which it gets the end.
func (a *API) responsible(tail []byte) string {
	const member = `,"sender":` // within a string, the quotes would be escaped
	at := bytes.LastIndex(tail, []byte(member))
	if at < 0 {
		return ""
	}
	token := tail[at+len(member):]
	if end := bytes.Index(token, []byte(`,"type":`)); end >= 0 {
		token = token[:end]
	}
	sender, _ := canonicaljson.DecodeString(token)
	if server, ok := serverOf(string(sender)); ok && server != a.rooms.Name() {
		return server
	}
	return string(sender)
}

// chooseSurplus returns the positions of the messages to delete so that the rest is not larger than a size. Nobody loses
// a message as long as somebody else has more waiting.
func chooseSurplus(waiting []waitingMessage, size int64) (surplus []any) {
	of := map[string]int64{}
	for _, m := range waiting {
		of[m.responsible] += m.size
	}
	share := fairShare(of, size)
	for _, m := range waiting {
		if of[m.responsible] > share {
			of[m.responsible] -= m.size
			surplus = append(surplus, m.pos)
		}
	}
	return surplus
}

// fairShare is the most that each may have, so that all together have no more than size.
func fairShare(of map[string]int64, size int64) int64 {
	amounts := make([]int64, 0, len(of))
	for _, n := range of {
		amounts = append(amounts, n)
	}
	slices.SortFunc(amounts, cmp.Compare)
	for i, n := range amounts {
		share := size / int64(len(amounts)-i)
		if n > share {
			return share
		}
		size -= n
	}
	return math.MaxInt64 // there is enough for all
}
