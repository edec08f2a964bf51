package search

import (
	"context"
	"fmt"

	"github.com/myelin-im/myelin/storage"
)

var removalTable = storage.DeclareTable("directory_removals", storage.InsertIgnore,
	storage.Key("member", storage.Int), storage.Key("room", storage.Int))

// removal is a user who was in a room that has been removed.
type removal struct {
	member, room int64
	user         string // "" if the directory does not have them any more
}

// visitRemovals brings the entries of users up to date who were in rooms that have been removed: members on other servers,
// who leave nothing in the log. Each row comes with the change of directory_rooms that it is about, and that once, so that
// those which come meanwhile are others.
func (x *index) visitRemovals(ctx context.Context) error {
	for {
		list, err := x.readRemovals(ctx)
		if err != nil {
			return fmt.Errorf("read who was in removed rooms: %w", err)
		}
		if len(list) == 0 {
			return nil
		}
		b := &batch{x: x, purges: x.purges.ended.Load(), doubt: true}
		unit := &storage.Unit{}
		for _, r := range list {
			if r.user != "" {
				b.user(r.user) // nothing is new about them but what is in directory_rooms
			}
			unit.Delete(removalTable, r.member, r.room)
		}
		if err := b.flush(ctx, unit); err != nil {
			return err
		}
	}
}

func (x *index) readRemovals(ctx context.Context) (list []removal, err error) {
	err = x.db.Read(ctx, func(tx *storage.Tx) error {
		list = list[:0]
		rows := tx.Query(`SELECT r.member, r.room, COALESCE(u.user_id, '') FROM directory_removals r
			LEFT JOIN directory_users u ON u.id = r.member ORDER BY r.member, r.room LIMIT $1`, int64(maxBatch))
		var r removal
		for rows.Next() {
			rows.Scan(&r.member, &r.room, &r.user)
			list = append(list, r)
		}
		return rows.Close()
	})
	return list, err
}
