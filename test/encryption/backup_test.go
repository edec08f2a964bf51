package encryption

import (
	"testing"

	. "github.com/myelin-im/myelin/test/harness"
)

const backups = "/_matrix/client/v3/room_keys"

func backupKey(verified bool, first, forwarded int, data string) J {
	return J{"is_verified": verified, "first_message_index": first, "forwarded_count": forwarded, "session_data": J{"data": data}}
}

func TestBackup(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice := s.Register(t, "alice")
		alice.Refused(404, "M_NOT_FOUND", "GET", backups+"/version", nil)
		alice.Refused(404, "M_NOT_FOUND", "PUT", backups+"/keys?version=1", J{"rooms": J{}})
		description := J{"algorithm": "m.megolm_backup.v1.curve25519-aes-sha2", "auth_data": J{"public_key": "abc"}}
		create := func() string { return alice.Must("POST", backups+"/version", description).JSON.Get("version").Str }
		v := create()
		show := func(version string, count int64, etag string) {
			t.Helper()
			r := alice.Must("GET", backups+"/version/"+version, nil).JSON
			if r.Get("count").Int() != count || r.Get("etag").Str != etag || r.Get("version").Str != version || r.Get("auth_data.public_key").Str == "" {
				t.Errorf("the backup is %s, want %d keys and etag %s", r, count, etag)
			}
		}
		show(v, 0, "0")
		put := func(path string, body J, count int64, etag string) {
			t.Helper()
			r := alice.Must("PUT", backups+"/keys"+path+"?version="+v, body).JSON
			if r.Get("count").Int() != count || r.Get("etag").Str != etag {
				t.Errorf("PUT %s: %s, want %d keys and etag %s", path, r, count, etag)
			}
		}
		put("/!a:x/s1", backupKey(false, 10, 5, "1"), 1, "1")
		put("/!a:x", J{"sessions": J{"s1": backupKey(false, 10, 5, "same"), "s2": backupKey(true, 0, 0, "2")}}, 2, "2")
		put("", J{"rooms": J{"!a:x": J{"sessions": J{"s3": backupKey(false, 0, 0, "3")}}, "!b:x": J{"sessions": J{"s1": backupKey(false, 1, 0, "4")}}}}, 4, "3")
		put("", J{"rooms": J{}}, 4, "3")
		show(v, 4, "3")

		all := alice.Must("GET", backups+"/keys?version="+v, nil).JSON
		room := alice.Must("GET", backups+"/keys/!a:x?version="+v, nil).JSON
		one := alice.Must("GET", backups+"/keys/!a:x/s2?version="+v, nil).JSON
		if all.Get("rooms").Get(Key("!a:x")).Get("sessions").Raw != room.Get("sessions").Raw || len(room.Get("sessions").Map()) != 3 ||
			room.Get("sessions.s2").Raw != one.Raw || one.Get("session_data.data").Str != "2" || !one.Get("is_verified").Bool() {
			t.Errorf("all %s, room %s, one %s", all, room, one)
		}
		alice.Refused(404, "M_NOT_FOUND", "GET", backups+"/keys/!a:x/none?version="+v, nil)
		alice.Refused(404, "M_NOT_FOUND", "GET", backups+"/keys?version=77", nil)
		if got := alice.Must("GET", backups+"/keys/!none:x?version="+v, nil).JSON.Raw; got != `{"sessions":{}}` {
			t.Errorf("a room without keys: %s", got)
		}
		alice.Refused(400, "M_BAD_JSON", "PUT", backups+"/keys/!a:x/s1?version="+v, J{"is_verified": true})

		removed := alice.Must("DELETE", backups+"/keys/!a:x/s1?version="+v, nil).JSON
		if removed.Get("count").Int() != 3 || removed.Get("etag").Str != "4" {
			t.Errorf("after deleting one: %s", removed)
		}
		alice.Must("DELETE", backups+"/keys/!a:x?version="+v, nil)
		show(v, 1, "5")
		alice.Must("DELETE", backups+"/keys?version="+v, nil)
		show(v, 0, "6")

		alice.Must("PUT", backups+"/version/"+v, J{"algorithm": description["algorithm"], "auth_data": J{"public_key": "new"}, "version": v})
		alice.Refused(400, "M_INVALID_PARAM", "PUT", backups+"/version/"+v, J{"algorithm": "another", "auth_data": J{}})
		alice.Refused(400, "M_INVALID_PARAM", "PUT", backups+"/version/"+v, J{"algorithm": description["algorithm"], "auth_data": J{}, "version": "9"})
		alice.Refused(404, "M_NOT_FOUND", "PUT", backups+"/version/9", description)

		second := create()
		wrong := alice.Refused(403, "M_WRONG_ROOM_KEYS_VERSION", "PUT", backups+"/keys/!a:x/s1?version="+v, backupKey(true, 0, 0, "x"))
		if got := wrong.JSON.Get("current_version").Str; got != second {
			t.Errorf("current_version %q, want %q", got, second)
		}
		for range 2 {
			alice.Must("DELETE", backups+"/version/"+second, nil)
		}
		alice.Refused(404, "M_NOT_FOUND", "DELETE", backups+"/version/9", nil)
		alice.Refused(404, "M_NOT_FOUND", "GET", backups+"/version/"+second, nil)
		if got := alice.Must("GET", backups+"/version", nil).JSON.Get("version").Str; got != v {
			t.Errorf("the newest backup is %s, want %s", got, v)
		}
		if third := create(); third == second || third == v {
			t.Errorf("version %s is used again", third)
		}
		// Backups are one's own.
		s.Register(t, "bob").Refused(404, "M_NOT_FOUND", "GET", backups+"/version/"+v, nil)
	})
}

// TestBackupKeepsTheBetterKey tries all pairs of keys.
func TestBackupKeepsTheBetterKey(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice := s.Register(t, "alice")
		v := alice.Must("POST", backups+"/version", J{"algorithm": "a", "auth_data": J{}}).JSON.Get("version").Str
		type key struct {
			verified         bool
			first, forwarded int
		}
		var keys []key // the better ones first
		for _, verified := range []bool{true, false} {
			for first := range 2 {
				for forwarded := range 2 {
					keys = append(keys, key{verified, first, forwarded})
				}
			}
		}
		path := backups + "/keys/!a:x/session?version=" + v
		for i, a := range keys {
			for j, b := range keys {
				alice.Must("DELETE", path, nil)
				alice.Must("PUT", path, backupKey(a.verified, a.first, a.forwarded, "a"))
				alice.Must("PUT", path, backupKey(b.verified, b.first, b.forwarded, "b"))
				want := "a"
				if j < i {
					want = "b"
				}
				if got := alice.Must("GET", path, nil).JSON.Get("session_data.data").Str; got != want {
					t.Errorf("%v then %v: %s is kept", a, b, got)
				}
			}
		}
	})
}
