package accounts

import (
	"context"
	"testing"

	"github.com/myelin-im/myelin/storage"
)

func TestIgnoreLists(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		lists := NewIgnoreLists(db)
		s := newServer(t, db)
		token := s.user("alice")
		var last int64
		for _, c := range []struct {
			content string
			bob     bool
		}{
			{``, false},
			{`{"ignored_users":{"@bob:test":{},"@carol:test":{},"@alice:test":{}}}`, true},
			{`{"ignored_users":{"@carol:test":{}}}`, false},
			{`{"ignored_users":["@bob:test"]}`, false},
			{`{"ignored_users":"@bob:test"}`, false},
			{`{"ignored_users":{"@bob:test":true}}`, true},
			{`{}`, false},
		} {
			if c.content != "" {
				s.ok("PUT", "/user/@alice:test/account_data/m.ignored_user_list", token, c.content)
			}
			for range 2 {
				users, pos, err := lists.Of(context.Background(), "@alice:test")
				if err != nil {
					t.Fatal(err)
				}
				bob := users["@bob:test"]
				alice := users["@alice:test"]
				if bob != c.bob || alice {
					t.Errorf("%s: %v", c.content, users)
				}
				if pos < last || c.content != "" && pos != db.Head() {
					t.Errorf("%s: position %d, head %d", c.content, pos, db.Head())
				}
				last = pos
			}
		}
		// What else stands in account data does not make it another list.
		s.ok("PUT", "/user/@alice:test/account_data/m.tag", token, `{"a":1}`)
		if _, pos, err := lists.Of(context.Background(), "@alice:test"); err != nil || pos != last {
			t.Errorf("position %d became %d: %v", last, pos, err)
		}
	})
}
