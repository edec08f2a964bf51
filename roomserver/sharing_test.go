package roomserver

import (
	"slices"
	"testing"
)

func TestEachRemoteUser(t *testing.T) {
	eachPair(t, "12", func(t *testing.T, w *world, away *Server) {
		w.joinFrom(away, "@bob:away")
		var got []string
		err := away.EachRemoteUser(ctx, func(user string) bool {
			got = append(got, user)
			return true
		})
		if err != nil || slices.Contains(got, "@bob:away") || len(got) == 0 || !slices.IsSorted(got) {
			t.Errorf("users of other servers: %v, %v", got, err)
		}
		n := 0
		if err := away.EachRemoteUser(ctx, func(string) bool { n++; return false }); err != nil || n != 1 {
			t.Errorf("after the first: %d, %v", n, err)
		}
	})
}
