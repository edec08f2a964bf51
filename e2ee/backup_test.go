package e2ee

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"testing"

	"github.com/myelin-im/myelin/internal/httpapi"
)

// owner has key backups.
type owner struct {
	t   *testing.T
	api *API
	by  *httpapi.Caller
}

func newOwner(t *testing.T, a *API, user string) owner {
	return owner{t, a, &httpapi.Caller{UserID: user, DeviceID: "X"}}
}

func (o owner) create() (version string) {
	o.t.Helper()
	v, err := o.api.createBackup(o.t.Context(), o.by, &backupRequest{Algorithm: "a", AuthData: json.RawMessage(`{}`)})
	if err != nil {
		o.t.Fatal(err)
	}
	return v.Version
}

func keyOf(first, forwarded int64, verified bool, data string) *backupKey {
	return &backupKey{&first, &forwarded, &verified, json.RawMessage(fmt.Sprintf(`{"data":%q}`, data))}
}

// put stores keys of one room and returns what the answer says, or the error's code.
func (o owner) put(version string, sessions map[string]*backupKey) string {
	out, err := o.api.putBackupRoom(o.t.Context(), o.by, &putRoomRequest{Version: version, RoomID: "!room:hs", Sessions: sessions})
	if err != nil {
		return codeOf(err)
	}
	return fmt.Sprintf("%d keys, etag %s", out.Count, out.ETag)
}

// is checks the number and the etag of a backup.
func (o owner) is(what, version string, count, etag int) {
	o.t.Helper()
	b, err := o.api.getBackup(o.t.Context(), o.by, &versionRequest{version})
	if err != nil {
		o.t.Fatal(err)
	}
	if b.Count != int64(count) || b.ETag != strconv.Itoa(etag) {
		o.t.Errorf("%s: %d keys, etag %s; want %d and %d", what, b.Count, b.ETag, count, etag)
	}
}

// The etag changes with the keys, and only then, so that clients notice what other devices have stored.
func TestBackupETag(t *testing.T) {
	eachAPI(t, func(t *testing.T, a *API) {
		alice, bob := newOwner(t, a, "@alice:hs"), newOwner(t, a, "@bob:hs")
		v := alice.create()
		for _, c := range []struct {
			what     string
			sessions map[string]*backupKey
			want     string
		}{
			{"the first", map[string]*backupKey{"s": keyOf(5, 5, false, "1")}, "1 keys, etag 1"},
			{"the same", map[string]*backupKey{"s": keyOf(5, 5, false, "2")}, "1 keys, etag 1"},
			{"a worse one", map[string]*backupKey{"s": keyOf(6, 0, false, "3")}, "1 keys, etag 1"},
			{"a better one", map[string]*backupKey{"s": keyOf(4, 9, false, "4")}, "1 keys, etag 2"},
			{"a worse one and two new ones", map[string]*backupKey{"s": keyOf(9, 0, false, "5"), "t": keyOf(0, 0, false, ""), "u": keyOf(0, 0, false, "")}, "3 keys, etag 3"},
			{"none", nil, "3 keys, etag 3"},
			{"one that is not whole", map[string]*backupKey{"w": keyOf(0, 0, false, ""), "x": {}}, "M_BAD_JSON"},
			{"a negative number", map[string]*backupKey{"w": keyOf(0, 0, false, ""), "x": keyOf(-1, 0, false, "")}, "M_INVALID_PARAM"},
		} {
			if got := alice.put(v, c.sessions); got != c.want {
				t.Errorf("%s: %s, want %s", c.what, got, c.want)
			}
		}
		alice.is("after all", v, 3, 3)
		for what, in := range map[string]*getKeysRequest{
			"a session that is not there": {Version: v, RoomID: "!room:hs", SessionID: "none"}, "a room that is not there": {Version: v, RoomID: "!none:hs"},
		} {
			if out, err := a.deleteFromBackup(t.Context(), alice.by.UserID, in); err != nil || out.Count != 3 || out.ETag != "3" {
				t.Errorf("delete %s: %+v, %v", what, out, err)
			}
		}
		// Only the newest backup takes keys, and only its owner's.
		if got := bob.put(v, map[string]*backupKey{"s": keyOf(0, 0, true, "")}); got != "M_NOT_FOUND" {
			t.Errorf("a backup of somebody else: %s", got)
		}
		second := alice.create()
		for version, want := range map[string]string{v: "M_WRONG_ROOM_KEYS_VERSION", "0": "M_WRONG_ROOM_KEYS_VERSION", "x": "M_WRONG_ROOM_KEYS_VERSION", " " + second: "M_WRONG_ROOM_KEYS_VERSION"} {
			if got := alice.put(version, map[string]*backupKey{"s": keyOf(0, 0, true, "")}); got != want {
				t.Errorf("version %q: %s, want %s", version, got, want)
			}
		}
		alice.is("the old one", v, 3, 3)
		alice.is("the new one", second, 0, 0)
	})
}

// Devices that back up at the same time neither lose a key nor miscount.
func TestBackupsAtOnce(t *testing.T) {
	eachAPI(t, func(t *testing.T, a *API) {
		const devices, each = 8, 6
		alice := newOwner(t, a, "@alice:hs")
		v := alice.create()
		var group sync.WaitGroup
		for d := range int64(devices) {
			group.Go(func() {
				for i := range each {
					// One key of its own, and one that all have, each a little better than others'.
					got := alice.put(v, map[string]*backupKey{
						fmt.Sprint("own ", d, " ", i): keyOf(0, 0, false, "own"),
						"common":                      keyOf(100-d, int64(rand.N(10)), false, fmt.Sprint(d)),
					})
					if len(got) > 2 && got[:2] == "M_" {
						t.Errorf("device %d: %s", d, got)
					}
				}
			})
		}
		group.Wait()
		alice.is("after all", v, devices*each+1, devices*each)
		best := ""
		err := a.eachBackupKey(t.Context(), alice.by.UserID, &getKeysRequest{Version: v, RoomID: "!room:hs", SessionID: "common"}, func(_, _ string, key []byte) {
			best = string(key)
		})
		var k backupKey
		if err := json.Unmarshal([]byte(best), &k); err != nil {
			t.Fatalf("%q: %v", best, err)
		}
		if err != nil || *k.FirstMessageIndex != 100-(devices-1) || string(k.SessionData) != fmt.Sprintf(`{"data":"%d"}`, devices-1) {
			t.Errorf("the common key is %s, %v", best, err)
		}
	})
}
