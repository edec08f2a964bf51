package e2ee

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/myelin-im/myelin/storage"
)

// noteChange notes that the identity or devices of a user, local or remote, changed.
func noteChange(tx *storage.Tx, userID string) error {
	pos, err := tx.Position()
	if err != nil {
		return err
	}
	_, err = tx.Exec(`INSERT INTO device_list_changes (user_id, pos) VALUES ($1, $2) ON CONFLICT (user_id) DO UPDATE SET pos = excluded.pos`, userID, pos)
	if err == nil {
		tx.Notice(storage.Notice{Pos: pos, Kind: storage.DeviceKeys, User: userID})
	}
	return err
}

// noteNews is noteChange for a change of a local user that other servers have to hear of: the keys of a device, or, where
// the device is empty, the cross-signing keys.
func noteNews(tx *storage.Tx, userID, deviceID string) error {
	if err := noteChange(tx, userID); err != nil {
		return err
	}
	pos, err := tx.Position()
	if err != nil {
		return err
	}
	_, err = tx.Exec(`INSERT INTO device_list_news (pos, user_id, device_id) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING`, pos, userID, deviceID)
	return err
}

// change says that a user's identity changed at a position.
type change struct {
	pos  int64
	user string
	// quiet tells that only what is stored of a remote user changed, of which clients need not hear.
	quiet bool
}

// changeLog holds the changes of late in memory.
type changeLog struct {
	mu     sync.RWMutex
	floor  int64 // all changes after it are here
	recent []change
	last   map[string]int64 // the last change of each user in recent
}

// maxRecentChanges bounds a changeLog.
const maxRecentChanges = 20_000

func newChangeLog(head int64) *changeLog { return &changeLog{floor: head, last: map[string]int64{}} }

// add appends a change. Positions never go back.
func (c *changeLog) add(pos int64, user string, quiet bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.recent) >= maxRecentChanges {
		old := c.recent[:maxRecentChanges/2]
		c.floor = old[len(old)-1].pos
		for _, o := range old {
			if c.last[o.user] <= c.floor {
				delete(c.last, o.user)
			}
		}
		c.recent = slices.Clone(c.recent[len(old):])
	}
	c.recent = append(c.recent, change{pos, user, quiet})
	c.last[user] = pos
}

// unchanged tells whether it is certain that a user has not changed after a position.
func (c *changeLog) unchanged(user string, since int64) bool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return since >= c.floor && c.last[user] <= since
}

// between returns the users with changes in (from, to], if memory knows that.
func (c *changeLog) between(from, to int64) (users []string, known bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if from < c.floor {
		return nil, false
	}
	i, _ := slices.BinarySearchFunc(c.recent, from+1, func(e change, pos int64) int { return int(min(1, max(-1, e.pos-pos))) })
	for ; i < len(c.recent) && c.recent[i].pos <= to; i++ {
		if !c.recent[i].quiet && !slices.Contains(users[max(0, len(users)-8):], c.recent[i].user) {
			users = append(users, c.recent[i].user)
		}
	}
	return users, true
}

// changedBetween returns the users whose identity changed in (from, to]. The rows know each user's last change only; one
// that comes after to is told of by whoever goes on from there.
func (a *API) changedBetween(ctx context.Context, from, to int64) (users []string, err error) {
	if users, known := a.changes.between(from, to); known {
		return users, nil
	}
	users, err = storage.ReadList[string](ctx, a.db, `SELECT user_id FROM device_list_changes WHERE pos > $1 AND pos <= $2`, from, to)
	if err != nil {
		return nil, fmt.Errorf("read changed devices: %w", err)
	}
	return users, nil
}
