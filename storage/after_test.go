package storage_test

import (
	"errors"
	"fmt"
	"testing"
	"testing/fstest"

	"github.com/myelin-im/myelin/storage"
	"github.com/myelin-im/myelin/storage/storagetest"
)

// TestAfter: a unit that fails takes those built on it with it, in the same batch and in later ones, and harms no other.
func TestAfter(t *testing.T) {
	files := storage.Schema{Feature: "after", FS: fstest.MapFS{"migrations/0001_things.sql": {Data: []byte(`CREATE TABLE things (id BIGINT PRIMARY KEY);`)}}}
	things := storage.DeclareTable("things", storage.Insert, storage.Key("id", storage.Int))
	storagetest.Each(t, []storage.Schema{files}, func(t *testing.T, db *storage.DB) {
		outcome := map[string]error{}
		done := make(chan struct{})
		add := func(name string, id int64, after *storage.Unit) *storage.Unit {
			u := &storage.Unit{After: after, Done: func(_ int64, err error) { outcome[name] = err; done <- struct{}{} }}
			u.Add(things, id)
			db.Append(u)
			return u
		}
		var units int
		for round := range 20 {
			base := int64(round * 10)
			first := add(fmt.Sprint(round, " first"), base+1, nil)
			bad := add(fmt.Sprint(round, " bad"), base+1, first)
			child := add(fmt.Sprint(round, " child"), base+2, bad)
			add(fmt.Sprint(round, " grandchild"), base+3, child)
			add(fmt.Sprint(round, " other"), base+4, nil)
			units += 5
		}
		for range units {
			<-done
		}
		for round := range 20 {
			for name, want := range map[string]error{"first": nil, "bad": storage.ErrConflict, "child": storage.ErrAfter, "grandchild": storage.ErrAfter, "other": nil} {
				if got := outcome[fmt.Sprint(round, " ", name)]; !errors.Is(got, want) {
					t.Errorf("round %d: %s ended with %v, want %v", round, name, got, want)
				}
			}
		}
	})
}
