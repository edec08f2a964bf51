package storage

import (
	"context"
	"fmt"
)

// spareShare and sparePages are the free pages that Shrink leaves in the file, because new rows will need them soon: that
// share of all pages, or so many if that is more.
const (
	spareShare = 50
	sparePages = 64
)

// Shrink gives up to pages of what deleted rows have left free in an SQLite file back to the file system, as one unit,
// and tells whether there is more to give. The file gets shorter with the next checkpoint. PostgreSQL does the like by itself
// (autovacuum), and files made before this existed keep their size and use the space again; both answer false.
func (db *DB) Shrink(ctx context.Context, pages int) (more bool, err error) {
	if db.dialect != SQLite {
		return false, nil
	}
	var all, free, rest int64
	err = db.Write(ctx, func(tx *Tx) error {
		all, free, rest = 0, 0, 0
		if _, err := tx.Get(`PRAGMA page_count`, nil, &all); err != nil {
			return err
		}
		if _, err := tx.Get(`PRAGMA freelist_count`, nil, &free); err != nil {
			return err
		}
		spare := max(all/spareShare, sparePages)
		if rest = free; free <= spare {
			return nil
		}
		if _, err := tx.Exec(fmt.Sprintf(`PRAGMA incremental_vacuum(%d)`, min(int64(pages), free-spare))); err != nil {
			return err
		}
		_, err := tx.Get(`PRAGMA freelist_count`, nil, &rest)
		return err
	})
	if err != nil {
		return false, fmt.Errorf("shrink the database: %w", err)
	}
	return rest < free && rest > max(all/spareShare, sparePages), nil
}
