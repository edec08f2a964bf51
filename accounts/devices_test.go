package accounts

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/myelin-im/myelin/storage"
	"github.com/myelin-im/myelin/storage/storagetest"
)

func TestDevices(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		s := newServer(t, db)
		alice := s.user("alice")
		bob := s.user("bob")
		phone := s.login("alice", "PHONE")
		s.login("bob", "BOB")
		if d := s.ok("GET", "/devices", alice, nil).Get("devices").Array(); len(d) != 2 {
			t.Errorf("devices: %v", d)
		}
		s.ok("PUT", "/devices/PHONE", alice, obj{"display_name": "My phone"})
		s.ok("PUT", "/devices/PHONE", alice, obj{})
		if d := s.ok("GET", "/devices/PHONE", alice, nil); d.Get("display_name").Str != "My phone" || d.Get("device_id").Str != "PHONE" {
			t.Errorf("device: %s", d.Raw)
		}
		for _, a := range []answer{
			s.do("GET", "/devices/NONE", alice, nil),
			s.do("GET", "/devices/BOB", alice, nil),
			s.do("PUT", "/devices/NONE", alice, obj{"display_name": "x"}),
			s.do("PUT", "/devices/BOB", alice, obj{"display_name": "x"}),
		} {
			s.want(a, 404, "M_NOT_FOUND")
		}
		s.want(s.do("PUT", "/devices/PHONE", alice, obj{"display_name": strings.Repeat("x", 257)}), 400, "M_INVALID_PARAM")
		s.want(s.do("PUT", "/devices/PHONE", alice, obj{"display_name": 1}), 400, "M_BAD_JSON")
		s.want(s.do("GET", "/devices", "", nil), 401, "M_MISSING_TOKEN")

		// Deletion: no body, wrong password, another user's password, one's own.
		a := s.want(s.do("DELETE", "/devices/PHONE", alice, nil), 401, "")
		if !a.Get("session").Exists() || !a.Get("flows").Exists() || !a.Get("params").Exists() {
			t.Errorf("no body: %s", a.Raw)
		}
		wrong := obj{"type": "m.login.password", "identifier": obj{"type": "m.id.user", "user": "alice"}, "password": "no"}
		s.want(s.do("DELETE", "/devices/PHONE", alice, obj{"auth": wrong}), 401, "M_FORBIDDEN")
		s.want(s.do("DELETE", "/devices/PHONE", alice, obj{"auth": password("bob", "")}), 403, "M_FORBIDDEN")
		if !s.alive(phone) {
			t.Fatal("deleted without proof")
		}
		s.ok("DELETE", "/devices/PHONE", alice, obj{"auth": password("alice", "")})
		if s.alive(phone) || !s.alive(alice) {
			t.Error("a deleted device's token is good, or another's is not")
		}
		s.want(s.do("GET", "/devices/PHONE", alice, nil), 404, "M_NOT_FOUND")
		s.ok("DELETE", "/devices/PHONE", alice, obj{"auth": password("alice", "")}) // it was removed previously

		// In bulk; what belongs to others stays.
		s.login("alice", "X")
		s.login("alice", "Y")
		s.want(s.do("POST", "/delete_devices", alice, obj{}), 400, "M_MISSING_PARAM")
		s.want(s.do("POST", "/delete_devices", alice, obj{"auth": password("alice", "")}), 400, "M_MISSING_PARAM")
		s.want(s.do("POST", "/delete_devices", alice, obj{"devices": "X", "auth": password("alice", "")}), 400, "M_BAD_JSON")
		s.want(s.do("POST", "/delete_devices", alice, obj{"devices": slices.Repeat([]string{"X"}, 1001)}), 400, "M_INVALID_PARAM")
		s.ok("POST", "/delete_devices", alice, obj{"devices": []string{"X", "Y", "BOB", "NONE"}, "auth": password("alice", "")})
		if d := s.ok("GET", "/devices", alice, nil).Get("devices").Array(); len(d) != 1 {
			t.Errorf("devices: %v", d)
		}
		s.ok("GET", "/devices/BOB", bob, nil)
	})
}

// TestHooks checks that other features take part in the transaction.
func TestHooks(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		var mu sync.Mutex
		var heard []string
		var fail error
		note := func(format string, args ...any) error {
			mu.Lock()
			defer mu.Unlock()
			if fail == nil {
				heard = append(heard, fmt.Sprintf(format, args...))
			}
			return fail
		}
		setFail := func(err error) {
			mu.Lock()
			defer mu.Unlock()
			fail = err
		}
		s := newServer(t, db, func(_ *Config, d *Deps) {
			d.Hooks = []Hooks{{}, {
				DevicesDeleted: func(_ *storage.Tx, userID string, ids []string) error { return note("deleted %s %v", userID, ids) },
				DeviceRenamed:  func(_ *storage.Tx, userID, id string) error { return note("renamed %s %s", userID, id) },
				Deactivated:    func(_ *storage.Tx, userID string, erase bool) error { return note("deactivated %s %v", userID, erase) },
			}}
		})
		s.user("alice")
		token := s.login("alice", "D")
		setFail(errors.New("no"))
		s.want(s.do("POST", "/logout", token, nil), 500, "M_UNKNOWN")
		if !s.alive(token) {
			t.Error("a failed hook does not undo the logout")
		}
		setFail(nil)
		s.ok("PUT", "/devices/D", token, obj{"display_name": "x"})
		s.ok("POST", "/logout", token, nil)
		s.login("alice", "E")
		if err := s.Deactivate(context.Background(), "@alice:test", true); err != nil {
			t.Fatal(err)
		}
		mu.Lock()
		defer mu.Unlock()
		if len(heard) != 4 || heard[0] != "renamed @alice:test D" || heard[1] != "deleted @alice:test [D]" || heard[3] != "deactivated @alice:test true" {
			t.Errorf("heard %q", heard)
		}
	})
}

// TestNoticeForgetsTokens checks that what another node does to a user's devices reaches this one's memory.
func TestNoticeForgetsTokens(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		s := newServer(t, db)
		token := s.user("alice")
		if !s.alive(token) {
			t.Fatal("not logged in")
		}
		err := db.Write(context.Background(), func(tx *storage.Tx) error {
			if _, err := tx.Exec(`DELETE FROM access_tokens`); err != nil {
				return err
			}
			if _, err := tx.Position(); err != nil {
				return err
			}
			tx.Notice(storage.Notice{Kind: storage.DeviceList, User: "@alice:test"})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if s.alive(token) {
			t.Error("the token is still remembered")
		}
	})
}

func TestPasswordChange(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		s := newServer(t, db)
		token := s.user("alice")
		other := s.login("alice", "OTHER")
		change := func(token, old, to string, more obj) answer {
			body := obj{"new_password": to, "auth": obj{"type": "m.login.password", "identifier": obj{"type": "m.id.user", "user": "alice"}, "password": old}}
			for k, v := range more {
				body[k] = v
			}
			return s.do("POST", "/account/password", token, body)
		}
		try := func(password string) int {
			return s.do("POST", "/login", "", obj{"type": "m.login.password", "identifier": obj{"type": "m.id.user", "user": "alice"}, "password": password}).status
		}
		s.want(s.do("POST", "/account/password", token, obj{"new_password": "new"}), 401, "")
		s.want(change(token, "wrong", "new", nil), 401, "M_FORBIDDEN")
		s.want(change(token, "secret-alice", strings.Repeat("x", 513), nil), 400, "M_INVALID_PARAM")
		s.want(s.do("POST", "/account/password", token, obj{"auth": password("alice", "")}), 400, "M_MISSING_PARAM")
		s.want(change(token, "secret-alice", "new", nil), 200, "")
		if try("secret-alice") != 403 || try("new") != 200 {
			t.Error("the old password is good, or the new one is not")
		}
		if !s.alive(token) || s.alive(other) {
			t.Error("the session that changes the password stays, the others end")
		}
		other = s.ok("POST", "/login", "", obj{"type": "m.login.password", "user": "alice", "password": "new"}).Get("access_token").Str
		s.want(change(token, "new", "newer", obj{"logout_devices": false}), 200, "")
		if !s.alive(other) {
			t.Error("logout_devices: false logs out")
		}
		// Without a session, who gives the password is the one who changes it.
		s.want(change("", "newer", "newest", nil), 200, "")
		if try("newest") != 200 || s.alive(token) {
			t.Error("change without a session")
		}
		s.want(change("nonsense", "newest", "x", nil), 401, "M_UNKNOWN_TOKEN")
	})
}

func TestPasswordChangeEndsWhatIsPending(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		s := newServer(t, db)
		token := s.user("alice")
		login := s.ok("POST", "/_matrix/client/v1/login/get_token", token, obj{"auth": password("alice", "")}).Get("login_token").Str
		if err := s.SetPassword(context.Background(), "@alice:test", "new"); err != nil {
			t.Fatal(err)
		}
		s.want(s.do("POST", "/login", "", obj{"type": "m.login.token", "token": login}), 403, "M_FORBIDDEN")
		if s.alive(token) {
			t.Error("an administrator's new password leaves sessions")
		}
	})
}

func TestRehashAtNewCost(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		s := newServer(t, db)
		s.user("alice")
		s.hasher = newHasher(Hashing{MemoryKiB: 16, Iterations: 2, Parallel: 1})
		s.login("alice", "D")
		var hash string
		if _, err := db.Get(context.Background(), `SELECT password_hash FROM accounts WHERE user_id = $1`, []any{"@alice:test"}, &hash); err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(hash, "$argon2id$v=19$m=16,t=2,p=1$") {
			t.Errorf("hash: %s", hash)
		}
		s.login("alice", "D")
	})
}

func TestDeactivate(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		s := newServer(t, db)
		token := s.user("alice")
		s.ok("PUT", path("/user/%/account_data/a", "@alice:test"), token, obj{"x": 1})
		s.ok("PUT", path("/profile/%/displayname", "@alice:test"), token, obj{"displayname": "Alice"})
		a := s.want(s.do("POST", "/account/deactivate", token, obj{}), 401, "")
		if stages(a) != `["m.login.password"]` {
			t.Errorf("flows: %s", a.Raw)
		}
		s.want(s.do("POST", "/account/deactivate", token, obj{"auth": obj{"type": "m.login.password", "user": "alice", "password": "no"}}), 401, "M_FORBIDDEN")
		a = s.ok("POST", "/account/deactivate", token, obj{"auth": password("alice", "")})
		if a.Get("id_server_unbind_result").Str != "success" {
			t.Errorf("answer: %s", a.Raw)
		}
		if s.alive(token) {
			t.Error("a token outlives its account")
		}
		for _, pw := range []string{"secret-alice", "other"} {
			s.want(s.do("POST", "/login", "", obj{"type": "m.login.password", "user": "alice", "password": pw}), 403, "M_USER_DEACTIVATED")
		}
		s.want(s.do("POST", "/register", "", obj{"username": "alice", "password": "p", "auth": dummy}), 400, "M_USER_IN_USE")
		eventually(t, "leaving the rooms", func() bool { _, left := s.rooms.seen(); return slices.Equal(left, []string{"@alice:test"}) })
		s.ok("GET", path("/profile/%", "@alice:test"), "", nil)

		// With erasure, and by an account without a session.
		bob := s.user("bob")
		s.ok("PUT", path("/user/%/account_data/a", "@bob:test"), bob, obj{"x": 1})
		s.ok("PUT", path("/profile/%/displayname", "@bob:test"), bob, obj{"displayname": "Bob"})
		s.ok("POST", "/account/deactivate", "", obj{"erase": true, "auth": password("bob", "")})
		if p := s.ok("GET", path("/profile/%", "@bob:test"), "", nil); p.Raw != "{}" {
			t.Errorf("profile after erasure: %s", p.Raw)
		}
		for user, want := range map[string]bool{"@alice:test": false, "@bob:test": true, "@nobody:test": false} {
			if erased, err := s.API.Erased(context.Background(), user); err != nil || erased != want {
				t.Errorf("Erased(%s) = %v, %v", user, erased, err)
			}
		}
		err := db.Read(context.Background(), func(tx *storage.Tx) error {
			data, err := AccountData(tx, "@bob:test")
			if len(data) != 0 {
				t.Errorf("account data after erasure: %v", data)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.SetPassword(context.Background(), "@bob:test", "again"); err == nil {
			t.Error("a deactivated account gets a password")
		}
	})
}

// TestJobsGoOnAfterARestart deactivates while rooms fail, and opens the database again.
func TestJobsGoOnAfterARestart(t *testing.T) {
	for _, d := range storagetest.Dialects {
		t.Run(d.String(), func(t *testing.T) {
			url := storagetest.URL(t, d)
			rooms := &fakeRooms{fail: errors.New("rooms are out of order")}
			now := &clock{now: time.UnixMilli(1_700_000_000_000)}
			start := func() (a *API, stop func()) {
				db := storagetest.OpenURL(t, url, Schema)
				a, err := New(Config{ServerName: "test", Hashing: cheap}, Deps{DB: db, Rooms: rooms, Log: quiet(), Now: now.Now})
				if err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithCancel(context.Background())
				stopped := make(chan struct{})
				go func() {
					defer close(stopped)
					a.Run(ctx)
				}()
				return a, func() {
					cancel()
					<-stopped
					if err := db.Close(context.Background()); err != nil {
						t.Error(err)
					}
				}
			}
			ctx := context.Background()
			a, stop := start()
			if _, err := a.CreateUser(ctx, NewUser{Username: "alice"}); err != nil {
				t.Fatal(err)
			}
			if err := a.Deactivate(ctx, "@alice:test", false); err != nil {
				t.Fatal(err)
			}
			eventually(t, "first attempt", func() bool {
				var n int64
				_, err := a.db.Get(ctx, `SELECT attempts FROM account_jobs`, nil, &n)
				return err == nil && n == 1
			})
			stop()
			if _, left := rooms.seen(); len(left) != 0 {
				t.Fatal("left although the rooms failed")
			}
			rooms.setFail(nil)
			now.advance(time.Minute)
			a, stop = start()
			eventually(t, "leaving the rooms", func() bool { _, left := rooms.seen(); return slices.Equal(left, []string{"@alice:test"}) })
			eventually(t, "end of the job", func() bool {
				found, err := a.db.Get(ctx, `SELECT 1 FROM account_jobs`, nil, nil)
				return err == nil && !found
			})
			stop()
		})
	}
}
