package accounts

import (
	"context"
	"fmt"

	"github.com/tidwall/gjson"

	"github.com/myelin-im/myelin/internal/memo"
	"github.com/myelin-im/myelin/storage"
)

// IgnoreLists tells from memory whom users ignore.
type IgnoreLists struct {
	memo *memo.Memo[string, ignoreList]
}

// ignoreList is whom one user ignores.
type ignoreList struct {
	users map[string]bool
	pos   int64
}

const (
	// maxIgnoreLists bounds the users whose lists are in memory.
	maxIgnoreLists = 50_000
	// maxIgnored bounds the users on one list; what stands behind them is not ignored.
	maxIgnored = 10_000
)

// NewIgnoreLists makes the memory. It must be called before the first write.
func NewIgnoreLists(db *storage.DB) *IgnoreLists {
	m := memo.New(maxIgnoreLists, func(ctx context.Context, user string) (ignoreList, error) { return readIgnoreList(ctx, db, user) })
	db.Subscribe(func(batch []storage.Notice, _ int64) {
		for i := range batch {
			if n := &batch[i]; n.Kind == storage.AccountData {
				m.Changed(n.User)
			}
		}
	})
	return &IgnoreLists{m}
}

// Of returns whom a user ignores by now, not to be changed, and the log position since which the list is this one.
//
// Spec: client-server API v1.19, "Ignoring Users".
func (l *IgnoreLists) Of(ctx context.Context, userID string) (users map[string]bool, pos int64, err error) {
	list, err := l.memo.Get(ctx, userID)
	return list.users, list.pos, err
}

func readIgnoreList(ctx context.Context, db *storage.DB, user string) (ignoreList, error) {
	var list ignoreList
	var content []byte
	_, err := db.Get(ctx, `SELECT content, pos FROM account_data WHERE user_id = $1 AND room_id = $2 AND type = $3`,
		[]any{user, "", "m.ignored_user_list"}, &content, &list.pos)
	if err != nil {
		return list, fmt.Errorf("read whom %s ignores: %w", user, err)
	}
	gjson.GetBytes(content, "ignored_users").ForEach(func(id, _ gjson.Result) bool {
		if id.Str == user {
			return true // nobody ignores themselves
		}
		if list.users == nil {
			list.users = map[string]bool{}
		}
		list.users[id.Str] = true
		return len(list.users) < maxIgnored
	})
	return list, nil
}
