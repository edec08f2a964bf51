package syncapi

import (
	"strings"
	"testing"

	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/storage"
)

// Requests with the same short filter share it, whoever makes them; long ones and wrong ones are not kept.
func TestInlineFiltersAreShared(t *testing.T) {
	eachDB(t, func(t *testing.T, db *storage.DB) {
		w := newWorld(t, db)
		parse := func(user, text string) any {
			t.Helper()
			f, err := w.sync.filter(t.Context(), &httpapi.Caller{UserID: user}, text)
			if err != nil {
				t.Fatal(err)
			}
			return f
		}
		short := `{"room":{"timeline":{"limit":3}}}`
		if parse(alice, short) != parse(bob, short) {
			t.Error("the same filter was parsed twice")
		}
		if parse(alice, short) == parse(alice, `{"room":{"timeline":{"limit":4}}}`) {
			t.Error("two filters are one")
		}
		long := `{"room":{"timeline":{"limit":3,"types":["` + strings.Repeat("x", maxSharedFilter) + `"]}}}`
		if parse(alice, long) == parse(alice, long) {
			t.Error("a long filter was kept")
		}
		for range 2 {
			if _, err := w.sync.filter(t.Context(), &httpapi.Caller{UserID: alice}, `{"room":1}`); err == nil {
				t.Error("a wrong filter was taken")
			}
		}
	})
}
