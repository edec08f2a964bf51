package accounts

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/storage"
)

// TestRemoteProfiles checks what is kept of profiles of users of other servers, and in which order it is told.
func TestRemoteProfiles(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		s := newServer(t, db)
		const carol = "@carol:elsewhere"
		told := map[string]json.RawMessage{}
		var failure error
		s.profile = func(context.Context, string) (map[string]json.RawMessage, error) { return told, failure }
		last := db.Head()
		news := func() (out []string) {
			t.Helper()
			head := db.Head()
			err := db.Read(context.Background(), func(tx *storage.Tx) error {
				out = nil
				return ProfileChanges(tx, last, head, func(c *ChangedField) { out = append(out, c.Field+" "+string(c.Value)) })
			})
			if err != nil {
				t.Fatal(err)
			}
			last = head
			return out
		}
		for _, step := range []struct {
			what    string
			told    map[string]json.RawMessage
			failure error
			status  int
			want    []string
		}{
			{"all that memberships do not tell", map[string]json.RawMessage{"displayname": []byte(`"C"`), "m.tz": []byte(`"UTC"`), "m.status": []byte(`{}`)}, nil, 200, []string{"m.status {}", `m.tz "UTC"`}},
			{"the same again", map[string]json.RawMessage{"m.tz": []byte(`"UTC"`), "m.status": []byte(`{}`)}, nil, 200, nil},
			{"no answer", nil, mxerr.New(502, "M_UNKNOWN", ""), 502, nil},
			{"no error for clients", nil, errors.New("broken"), 500, nil},
			{"another value, and one that is gone", map[string]json.RawMessage{"m.tz": []byte(`"CET"`)}, nil, 200, []string{"m.status ", `m.tz "CET"`}},
			{"values too large, names that are none", map[string]json.RawMessage{"m.tz": []byte(`"` + strings.Repeat("x", maxRemoteField) + `"`), "A": []byte(`1`)}, nil, 200, []string{"m.tz "}},
			{"values that clients stumble over", map[string]json.RawMessage{"m.one": []byte(`1e400`), "m.two": []byte(`"\ud800"`), "m.three": []byte("\"\xff\"")}, nil, 200, nil},
			{"a field that is back", map[string]json.RawMessage{"m.tz": []byte(`"UTC"`)}, nil, 200, []string{`m.tz "UTC"`}},
			{"no such user", nil, mxerr.NotFound(""), 404, []string{"m.tz "}},
		} {
			told, failure = step.told, step.failure
			if a := s.do("GET", path("/profile/%", carol), "", nil); a.status != step.status {
				t.Errorf("%s: %d %s", step.what, a.status, a.Raw)
			}
			if got := news(); !slices.Equal(got, step.want) {
				t.Errorf("%s: %q, want %q", step.what, got, step.want)
			}
		}
	})
}
