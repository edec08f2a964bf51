package storage_test

import (
	"sync"
	"testing"

	"github.com/myelin-im/myelin/storage"
	"github.com/myelin-im/myelin/storage/storagetest"
)

func TestIDsAcrossRestarts(t *testing.T) {
	eachURL(t, func(t *testing.T, url string) {
		last := int64(0)
		var generation int64
		for range 3 {
			db := storagetest.OpenURL(t, url, testSchema)
			if generation != 0 && db.Generation() != generation {
				t.Errorf("generation changed from %d to %d", generation, db.Generation())
			}
			generation = db.Generation()
			ids := db.IDs("room")
			for range 100 {
				id, err := ids.Next(t.Context())
				if err != nil || id <= last {
					t.Fatalf("id %d after %d, err %v", id, last, err)
				}
				last = id
			}
			closeDB(t, db)
		}
		if last > 3*1000 {
			t.Errorf("300 ids reached %d", last)
		}
	})
}

func TestIDsConcurrent(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		// Two allocators of one name are like two nodes.
		allocators := []*storage.IDs{db.IDs("x"), db.IDs("x")}
		var mu sync.Mutex
		seen := map[int64]bool{}
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				for range 200 {
					id, err := allocators[i%2].Next(t.Context())
					mu.Lock()
					if err != nil || id < 1 || seen[id] {
						t.Errorf("id %d, seen %v, err %v", id, seen[id], err)
					}
					seen[id] = true
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		if other, err := db.IDs("y").Next(t.Context()); other != 1 || err != nil {
			t.Errorf("first id of another name is %d, err %v", other, err)
		}
	})
}
