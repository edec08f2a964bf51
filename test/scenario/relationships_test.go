package scenario

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tidwall/gjson"

	. "github.com/myelin-im/myelin/test/harness"
)

const eventRelationships = "/_matrix/client/unstable/event_relationships"

// answering is the content of a message that answers another one in the sense of MSC2836.
func answering(target, body string) J {
	return J{"msgtype": "m.text", "body": body, "m.relationship": J{"rel_type": "m.reference", "event_id": target}}
}

func answerTo(c *Client, room, target, body string) string {
	return c.Event(room, "m.room.message", answering(target, body))
}

// walked asks for a walk, and returns the answer and the names of its events.
func walked(c *Client, names map[string]string, from string, more J) (gjson.Result, []string) {
	request := J{"event_id": from}
	maps.Copy(request, more)
	r := c.Must("POST", eventRelationships, request).JSON
	return r, named(r, names)
}

// named are the events of an answer by their names.
func named(r gjson.Result, names map[string]string) []string {
	out := []string{}
	for _, id := range IDs(r.Get("events")) {
		if name, ok := names[id]; ok {
			id = name
		}
		out = append(out, id)
	}
	return out
}

// wantChildren checks what is said of the events that relate to one.
func wantChildren(t *testing.T, e gjson.Result, counts string, ids ...string) {
	t.Helper()
	if got := e.Get("unsigned.children").Raw; got != counts {
		t.Errorf("children %s, want %s", got, counts)
	}
	slices.Sort(ids)
	sum := sha256.Sum256([]byte(strings.Join(ids, "")))
	want := base64.RawStdEncoding.EncodeToString(sum[:])
	if len(ids) == 0 {
		want = ""
	}
	if got := e.Get("unsigned.children_hash").Str; got != want {
		t.Errorf("children_hash %q, want %q of %d events", got, want, len(ids))
	}
}

// grow makes a thread:
//
//	root ─┬─ a ─┬─ a1 ── a11
//	      ├─ b  └─ a2
//	      └─ c
func grow(c *Client, room string) (ids, names map[string]string) {
	ids = map[string]string{"root": c.Text(room, "root")}
	for _, link := range []string{"root a", "root b", "root c", "a a1", "a a2", "a1 a11"} {
		parent, name, _ := strings.Cut(link, " ")
		// Siblings come in the order of their times, and where these are one, other servers cannot tell which was first.
		for last := time.Now().UnixMilli(); time.Now().UnixMilli() <= last; {
			time.Sleep(time.Millisecond)
		}
		ids[name] = answerTo(c, room, ids[parent], name)
	}
	names = map[string]string{}
	for name, id := range ids {
		names[id] = name
	}
	return ids, names
}

func TestWalkThread(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice := s.Register(t, "alice")
		room := alice.Create(J{})
		ids, names := grow(alice, room)
		for _, test := range []struct {
			what, from string
			request    J
			want       string
			limited    bool
		}{
			{"the defaults", "root", nil, "root c b a a2 a1 a11", false},
			{"oldest first", "root", J{"recent_first": false}, "root a b c a1 a2 a11", false},
			{"depth first", "root", J{"recent_first": false, "depth_first": true}, "root a a1 a11 a2 b c", false},
			{"depth first, latest first", "root", J{"depth_first": true}, "root c b a a2 a1 a11", false},
			{"one level", "root", J{"max_depth": 1}, "root c b a", false},
			{"no level", "root", J{"max_depth": 0}, "root", false},
			{"all levels", "root", J{"max_depth": -1, "max_breadth": -1}, "root c b a a2 a1 a11", false},
			{"one of each level", "root", J{"max_breadth": 1}, "root c", false},
			{"the oldest of each level", "root", J{"max_breadth": 1, "recent_first": false}, "root a a1 a11", false},
			{"up", "a11", J{"direction": "up"}, "a11 a1 a root", false},
			{"one up", "a11", J{"direction": "up", "max_depth": 1}, "a11 a1", false},
			{"with the parent", "a", J{"include_parent": true, "max_depth": 0}, "a root", false},
			{"with the parent of none", "root", J{"include_parent": true, "max_depth": 0}, "root", false},
			{"with the children", "a", J{"include_children": true, "max_depth": 0}, "a a2 a1", false},
			{"with both, once each", "a", J{"include_children": true, "include_parent": true, "recent_first": false}, "a root a1 a2 a11", false},
			{"up, with the children", "a", J{"include_children": true, "direction": "up"}, "a a2 a1 root", false},
			{"limited", "root", J{"limit": 3}, "root c b", true},
			{"limited in the children", "root", J{"limit": 2, "include_children": true}, "root c", true},
			{"just enough", "root", J{"limit": 7}, "root c b a a2 a1 a11", false},
			{"its room named", "b", J{"room_id": room}, "b", false},
		} {
			r, got := walked(alice, names, ids[test.from], test.request)
			if want := strings.Fields(test.want); !slices.Equal(got, want) {
				t.Errorf("%s: %v, want %v", test.what, got, want)
			}
			if r.Get("limited").Bool() != test.limited || r.Get("next_batch").Exists() != test.limited || !r.Get("limited").Exists() {
				t.Errorf("%s: limited %s, next_batch %s, want %t", test.what, r.Get("limited").Raw, r.Get("next_batch").Raw, test.limited)
			}
		}
		r, _ := walked(alice, names, ids["root"], nil)
		wantChildren(t, find(r.Get("events"), ids["root"]), `{"m.reference":3}`, ids["a"], ids["b"], ids["c"])
		wantChildren(t, find(r.Get("events"), ids["b"]), "")
	})
}

// Pages of a walk are of the walk as it was: what is said meanwhile moves nothing, and what the next request says beside its
// batch does not count.
func TestWalkThreadInPages(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice := s.Register(t, "alice")
		room := alice.Create(J{})
		ids, names := grow(alice, room)
		var got []string
		r, page := walked(alice, names, ids["root"], J{"limit": 2, "depth_first": true, "recent_first": false, "include_parent": true})
		for n := 0; ; n++ {
			got = append(got, page...)
			if !r.Get("limited").Bool() {
				break
			}
			if n > 10 || len(page) > 2 {
				t.Fatalf("page %d: %v", n, page)
			}
			answerTo(alice, room, ids["root"], fmt.Sprint("late ", n))
			r, page = walked(alice, names, ids["b"], J{"batch": r.Get("next_batch").Str, "limit": 100, "direction": "up"})
		}
		if want := strings.Fields("root a a1 a11 a2 b c"); !slices.Equal(got, want) {
			t.Errorf("pages: %v, want %v", got, want)
		}
		for _, batch := range []string{"x", "!", "e30", strings.Repeat("A", 5000), base64.RawURLEncoding.EncodeToString([]byte(`{"event_id":7}`))} {
			alice.Refused(400, "M_INVALID_PARAM", "POST", eventRelationships, J{"event_id": ids["root"], "batch": batch})
		}
		// A token is no way around access.
		alice.Must("PUT", Path("/rooms/%s/state/m.room.history_visibility", room), J{"history_visibility": "joined"})
		r, _ = walked(alice, names, ids["root"], J{"limit": 2})
		s.Register(t, "bob").Refused(404, "M_NOT_FOUND", "POST", eventRelationships, J{"batch": r.Get("next_batch").Str})
	})
}

func TestWalkOfTodaysRelations(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice := s.Register(t, "alice")
		room := alice.Create(J{})
		root := alice.Text(room, "root")
		one := reply(alice, room, root)
		like := alice.Event(room, "m.reaction", reaction(one, "👍"))
		two := answerTo(alice, room, root, "two")
		other := alice.Text(room, "other")
		both := answering(root, "both")
		both["m.relates_to"] = J{"rel_type": "m.reference", "event_id": other}
		three := alice.Event(room, "m.room.message", both)
		same := answering(root, "same")
		same["m.relates_to"] = J{"rel_type": "m.reference", "event_id": root}
		four := alice.Event(room, "m.room.message", same)

		r, got := walked(alice, nil, root, J{"recent_first": false})
		if want := []string{root, one, two, three, four, like}; !slices.Equal(got, want) {
			t.Errorf("down from the root: %v, want %v", got, want)
		}
		wantChildren(t, find(r.Get("events"), root), `{"m.reference":3,"m.thread":1}`, one, two, three, four)
		if _, got := walked(alice, nil, three, J{"direction": "up"}); !slices.Equal(got, []string{three, root}) {
			t.Errorf("up from an event with both: %v", got)
		}
		// For everything else there is only m.relates_to.
		wantIDs(t, "relations", alice.Must("GET", v1Path("/rooms/%s/relations/%s", room, root), nil).JSON.Get("chunk"), four, one)
		if refs := bundled(alice, room, root).Get(Key("m.reference")).Get("chunk"); len(refs.Array()) != 1 {
			t.Errorf("bundled references: %s", refs.Raw)
		}

		alice.Redact(room, two)
		r, got = walked(alice, nil, root, J{"max_depth": 1, "recent_first": false})
		if want := []string{root, one, three, four}; !slices.Equal(got, want) {
			t.Errorf("after a redaction: %v, want %v", got, want)
		}
		wantChildren(t, find(r.Get("events"), root), `{"m.reference":2,"m.thread":1}`, one, three, four)
	})
}

func TestWalkShowsWhatTheUserMaySee(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob, carol := s.Register(t, "alice"), s.Register(t, "bob"), s.Register(t, "carol")
		room := alice.Create(J{"preset": "public_chat", "initial_state": []J{
			{"type": "m.room.history_visibility", "state_key": "", "content": J{"history_visibility": "joined"}},
		}})
		root := alice.Text(room, "root")
		early := answerTo(alice, room, root, "early")
		for _, request := range []J{{"event_id": root}, {"event_id": root, "room_id": room}, {"event_id": "$unknown"}, {"event_id": "$unknown", "room_id": room}, {"event_id": root, "room_id": "!elsewhere:example.org"}} {
			bob.Refused(404, "M_NOT_FOUND", "POST", eventRelationships, request)
		}
		bob.Join(room)
		bob.Refused(404, "M_NOT_FOUND", "POST", eventRelationships, J{"event_id": root})
		late := answerTo(alice, room, early, "late")
		mine := answerTo(bob, room, late, "mine")
		later := answerTo(alice, room, mine, "later")
		if _, got := walked(bob, nil, mine, J{"direction": "up", "include_parent": true}); !slices.Equal(got, []string{mine, late}) {
			t.Errorf("up to what bob may not see: %v", got)
		}
		if r, got := walked(alice, nil, root, J{"max_depth": 4}); !slices.Equal(got, []string{root, early, late, mine, later}) {
			t.Errorf("all of it: %v %s", got, r.Raw)
		}
		// Who is ignored says nothing, and nothing is said below them.
		ignore(alice, bob.UserID)
		r, got := walked(alice, nil, root, J{"max_depth": 4})
		if !slices.Equal(got, []string{root, early, late}) {
			t.Errorf("without bob: %v", got)
		}
		wantChildren(t, find(r.Get("events"), late), "")
		// What somebody who has left sees ends there.
		bob.Leave(room)
		after := answerTo(alice, room, mine, "after")
		if _, got := walked(bob, nil, mine, nil); !slices.Equal(got, []string{mine, later}) {
			t.Errorf("after the leave: %v, and %s", got, after)
		}

		carol.Refused(404, "M_NOT_FOUND", "POST", eventRelationships, J{"event_id": after, "room_id": room, "auto_join": true}) // she came after it
	})
}

// A relationship is with an event that there is: in the same room or another one that its sender may see.
func TestRelationshipsWithUnknownEvents(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
		for _, version := range []string{"1", "12"} {
			room := alice.Create(J{"preset": "public_chat", "room_version": version})
			bob.Join(room)
			secret := alice.Text(alice.Create(J{"preset": "private_chat", "room_version": version}), "secret")
			send := func() string { return Path("/rooms/%s/send/m.room.message/%s", room, Txn()) }
			for _, target := range []string{"$unknown", "$unknown:example.org", "no id", secret} {
				bob.Refused(404, "M_NOT_FOUND", "PUT", send(), answering(target, "x"))
				bob.Refused(404, "M_NOT_FOUND", "PUT", Path("/rooms/%s/send/m.room.encrypted/%s", room, Txn()), answering(target, "x"))
			}
			alice.Refused(404, "M_NOT_FOUND", "PUT", Path("/rooms/%s/state/org.example.x/", room), answering("$unknown", "x"))
			answerTo(alice, room, secret, "across rooms")
			own := answerTo(bob, room, alice.Text(room, "known"), "x")
			answerTo(alice, room, bob.Redact(room, own), "on a redaction")
			answerTo(alice, room, own, "on what was redacted")
			// What is none by its form, and m.relates_to, are not checked.
			bob.Event(room, "m.room.message", J{"m.relationship": J{"event_id": "$unknown"}, "m.relates_to": J{"rel_type": "m.reference", "event_id": "$unknown"}})
		}
	})
}

func TestWalkRequests(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
		room := alice.Create(J{"preset": "public_chat"})
		root := alice.Text(room, "root")
		for _, test := range []struct {
			code    string
			request J
		}{
			{"M_MISSING_PARAM", J{}},
			{"M_INVALID_PARAM", J{"event_id": root, "direction": "left"}},
			{"M_INVALID_PARAM", J{"event_id": root, "limit": 0}},
			{"M_INVALID_PARAM", J{"event_id": root, "limit": -1}},
			{"M_BAD_JSON", J{"event_id": root, "limit": "1"}},
			{"M_BAD_JSON", J{"event_id": root, "max_depth": 1e30}},
			{"M_BAD_JSON", J{"event_id": 1}},
		} {
			alice.Refused(400, test.code, "POST", eventRelationships, test.request)
		}
		s.Client(t).Refused(401, "M_MISSING_TOKEN", "POST", eventRelationships, J{"event_id": root})
		if !alice.Must("GET", "/_matrix/client/versions", nil).JSON.Get(`unstable_features.org\.matrix\.msc2836`).Bool() {
			t.Error("/versions does not announce it")
		}
		// auto_join lets bob in where he could join anyway, and nowhere else.
		if _, got := walked(bob, nil, root, J{"room_id": room, "auto_join": true}); !slices.Equal(got, []string{root}) {
			t.Errorf("after joining: %v", got)
		}
		if got := bob.Must("GET", Path("/joined_rooms"), nil).JSON.Get("joined_rooms.0").Str; got != room {
			t.Errorf("bob is in %q", got)
		}
		closed := alice.Create(J{"preset": "private_chat"})
		bob.Refused(403, "M_FORBIDDEN", "POST", eventRelationships, J{"event_id": alice.Text(closed, "secret"), "room_id": closed, "auto_join": true})

		// Many answers: a window of them, and all of them counted.
		for i := range 1100 {
			answerTo(alice, room, root, fmt.Sprint(i))
		}
		r, got := walked(alice, nil, root, J{"limit": 100_000, "max_breadth": -1})
		if len(got) != 500 || !r.Get("limited").Bool() || r.Get("events.0.unsigned.children").Raw != `{"m.reference":1100}` {
			t.Errorf("of 1,100 answers: %d, limited %s, %s", len(got), r.Get("limited").Raw, r.Get("events.0.unsigned.children").Raw)
		}
		if r, got := walked(alice, nil, root, nil); len(got) != 11 || r.Get("limited").Bool() {
			t.Errorf("of 1,100 answers by default: %d, limited %s", len(got), r.Get("limited").Raw)
		}
	})
}
