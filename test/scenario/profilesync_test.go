package scenario

import (
	"testing"
	"time"

	"github.com/tidwall/gjson"

	. "github.com/myelin-im/myelin/test/harness"
)

// setField sets a profile field of one's own; a nil value deletes it.
func setField(c *Client, field string, value any) {
	path := Path("/profile/%s/%s", c.UserID, field)
	if value == nil {
		c.Must("DELETE", path, nil)
		return
	}
	c.Must("PUT", path, J{field: value})
}

func TestProfilesInSync(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob, carol := s.Register(t, "alice"), s.Register(t, "bob"), s.Register(t, "carol")
		id := alice.Create(J{"preset": "public_chat"})
		bob.Join(id)
		setField(alice, "m.status", J{"text": "here"})
		setField(alice, "other.field", 1)
		setField(carol, "m.status", J{"text": "elsewhere"})
		filter := Filter(J{"org.matrix.msc4429.profile_fields": J{"ids": []string{"m.status", "m.tz"}}})
		profile := func(r gjson.Result, c *Client) gjson.Result {
			return r.Get(`org\.matrix\.msc4429\.users`).Get(Key(c.UserID)).Get("profile_updates")
		}
		r := bob.Sync(filter)
		if p := profile(r, alice); p.Get(`m\.status.text`).Str != "here" || p.Get(`other\.field`).Exists() || profile(r, carol).Exists() {
			t.Errorf("at the beginning: %s", r.Get(`org\.matrix\.msc4429\.users`))
		}
		if r := bob.Sync(filter); r.Get(`org\.matrix\.msc4429\.users`).Exists() {
			t.Errorf("nothing has changed: %s", r)
		}
		// Changes are told once, as they are now; those of strangers and of other fields are not.
		since := bob.Since()
		setField(alice, "m.status", J{"text": "first"})
		setField(alice, "m.status", J{"text": "second"})
		setField(alice, "other.field", 2)
		setField(alice, "m.tz", "Europe/Berlin")
		setField(carol, "m.status", J{"text": "still elsewhere"})
		setField(bob, "m.tz", "Europe/Paris")
		check := func(r gjson.Result) {
			t.Helper()
			p := profile(r, alice)
			if p.Get(`m\.status.text`).Str != "second" || p.Get(`m\.tz`).Str != "Europe/Berlin" || len(p.Map()) != 2 ||
				profile(r, bob).Get(`m\.tz`).Str != "Europe/Paris" || profile(r, carol).Exists() {
				t.Errorf("changes: %s", r.Get(`org\.matrix\.msc4429\.users`))
			}
		}
		check(bob.Sync(filter))
		s.Restart()
		bob.SyncFrom(since)
		check(bob.Sync(filter))
		setField(alice, "m.tz", nil)
		if p := profile(bob.Sync(filter), alice); !p.Get(`m\.tz`).Exists() || p.Get(`m\.tz`).Type != gjson.Null || len(p.Map()) != 1 {
			t.Errorf("a deleted field: %s", p)
		}
		// Who does not ask is not told. Who joins is introduced, who leaves can be forgotten.
		setField(alice, "m.status", J{"text": "third"})
		if r := bob.Sync(nil); r.Get(`org\.matrix\.msc4429\.users`).Exists() {
			t.Errorf("not asked for: %s", r)
		}
		carol.Join(id)
		if p := profile(bob.Sync(filter), carol); p.Get(`m\.status.text`).Str != "still elsewhere" {
			t.Errorf("who has joined: %s", p)
		}
		carol.Leave(id)
		if p := profile(bob.Sync(filter), carol); !p.Exists() || p.Type != gjson.Null {
			t.Errorf("who has left: %s", p)
		}
		// A waiting request is woken.
		token := bob.Since()
		done := make(chan gjson.Result, 1)
		filter.Set("timeout", "30000")
		filter.Set("since", token)
		go func() {
			a, err := bob.Send("GET", Path("/sync?")+filter.Encode(), nil)
			if err != nil {
				done <- gjson.Result{}
				return
			}
			done <- a.JSON
		}()
		setField(alice, "m.status", J{"text": "fourth"})
		if r := <-done; profile(r, alice).Get(`m\.status.text`).Str != "fourth" {
			t.Errorf("while waiting: %s", r)
		}
	})
}

func TestProfilesBySliding(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob, carol := s.Register(t, "alice"), s.Register(t, "bob"), s.Register(t, "carol")
		for _, c := range []*Client{alice, bob, carol} {
			setField(c, "m.status", J{"text": c.UserID})
			setField(c, "m.tz", "UTC")
		}
		below := alice.Create(J{"preset": "public_chat"})
		id := alice.Create(J{"preset": "public_chat"})
		carol.Join(below)
		bob.Join(below)
		bob.Join(id)
		alice.Text(id, "above")
		const name = "org.matrix.msc4262.profiles"
		c := &slider{Client: bob}
		ask := func(last int, fields ...string) gjson.Result {
			x := J{"enabled": true}
			if len(fields) > 0 {
				x["fields"] = fields
			}
			return c.sync(J{"lists": list(0, last, 1, J{}), "extensions": J{name: x}}).Get("extensions").Get(Key(name)).Get("users")
		}
		user := func(x gjson.Result, c *Client) gjson.Result { return x.Get(Key(c.UserID)) }

		x := ask(0, "m.status")
		if user(x, alice).Get(`updated.m\.status.text`).Str != alice.UserID || user(x, alice).Get(`updated.m\.tz`).Exists() ||
			!user(x, bob).Exists() || user(x, carol).Exists() {
			t.Errorf("the room in the window: %s", x)
		}
		if x = ask(0, "m.status"); x.Exists() {
			t.Errorf("nothing has changed: %s", x)
		}
		// Of changes the client hears also while the room is in no window.
		setField(carol, "m.status", nil)
		setField(alice, "m.status", J{"text": "new"})
		x = ask(0, "m.status")
		if user(x, carol).Get("removed.0").Str != "m.status" || user(x, carol).Get("updated").Exists() ||
			user(x, alice).Get(`updated.m\.status.text`).Str != "new" || user(x, alice).Get("removed").Exists() {
			t.Errorf("changes: %s", x)
		}
		// A room that enters the window brings its members, another field all who are there.
		setField(carol, "m.status", J{"text": "back"})
		if x = ask(1, "m.status"); user(x, carol).Get(`updated.m\.status.text`).Str != "back" {
			t.Errorf("the room enters the window: %s", x)
		}
		s.Restart()
		x = ask(1)
		for _, who := range []*Client{alice, bob, carol} {
			if user(x, who).Get(`updated.m\.tz`).Str != "UTC" {
				t.Errorf("all fields: %s", x)
			}
		}
		// An answer that got lost is given again.
		acked := c.pos
		setField(alice, "m.tz", "Europe/Berlin")
		for range 2 {
			c.pos = acked
			if x = ask(1); user(x, alice).Get(`updated.m\.tz`).Str != "Europe/Berlin" {
				t.Errorf("given again: %s", x)
			}
		}
		carol.Leave(below)
		if x = ask(1); !user(x, carol).Exists() || user(x, carol).Type != gjson.Null {
			t.Errorf("who has left: %s", x)
		}
	})
}

// TestProfilesOfOtherServers checks that streams of profiles tell of users of other servers what is known of them: names
// and avatars by their memberships in any shared room, other fields once their server was asked.
func TestProfilesOfOtherServers(t *testing.T) {
	EachFederation(t, 2, func(t *testing.T, servers []*Server) {
		here, there := servers[0], servers[1]
		bob, alice := here.Register(t, "bob"), there.Register(t, "alice")
		setField(alice, "displayname", "Alice")
		setField(alice, "m.status", J{"text": "away"})
		id, above := bob.Create(J{"preset": "public_chat"}), bob.Create(J{})
		joinThrough(t, alice, id, here)
		bob.Text(above, "above")

		filter := Filter(J{"room": J{"timeline": J{"not_types": []string{"m.room.member"}}}, "org.matrix.msc4429.profile_fields": J{"ids": []string{"displayname", "avatar_url", "m.status"}}})
		byV3 := func(r gjson.Result) gjson.Result {
			return r.Get(`org\.matrix\.msc4429\.users`).Get(Key(alice.UserID)).Get("profile_updates")
		}
		until := func(what string, done func(gjson.Result) bool) {
			t.Helper()
			patient := Filter(nil)
			patient.Set("filter", filter.Get("filter"))
			patient.Set("timeout", "1000")
			for end := time.Now().Add(time.Minute); !done(byV3(bob.Sync(patient))); {
				if time.Now().After(end) {
					t.Fatalf("not told in time: %s", what)
				}
			}
		}
		const name = "org.matrix.msc4262.profiles"
		c := &slider{Client: bob}
		sliding := func(last int) gjson.Result {
			return c.sync(J{"lists": list(0, last, 1, J{}), "extensions": J{name: J{"enabled": true}}}).Get("extensions").Get(Key(name)).Get("users").Get(Key(alice.UserID))
		}

		if p := byV3(bob.Sync(filter)); p.Get("displayname").Str != "Alice" || p.Get("avatar_url").Exists() {
			t.Errorf("at the beginning: %s", p)
		}
		if u := sliding(0); u.Exists() {
			t.Errorf("before the room is in the window: %s", u)
		}
		if u := sliding(1); u.Get("updated.displayname").Str != "Alice" || u.Get("removed").Exists() {
			t.Errorf("the room enters the window: %s", u)
		}
		// The name changes while no filter and no window shows it.
		setField(alice, "displayname", "Alicia")
		setField(alice, "avatar_url", "mxc://example.org/a")
		bob.Text(above, "above")
		news := J{}
		until("the new name and avatar", func(p gjson.Result) bool {
			for field, value := range p.Map() {
				news[field] = value.Str
			}
			return len(news) == 2
		})
		if news["displayname"] != "Alicia" || news["avatar_url"] != "mxc://example.org/a" {
			t.Errorf("changed: %v", news)
		}
		if u := sliding(0); u.Get("updated.displayname").Str != "Alicia" || u.Get("updated.avatar_url").Str != "mxc://example.org/a" {
			t.Errorf("changed: %s", u)
		}
		// What memberships do not tell is told when the user's server was asked for it, and again when it is another.
		bob.Must("GET", Path("/profile/%s", alice.UserID), nil)
		if p := byV3(bob.Sync(filter)); p.Get(`m\.status.text`).Str != "away" || p.Get("displayname").Exists() {
			t.Errorf("asked for: %s", p)
		}
		if u := sliding(0); u.Get(`updated.m\.status.text`).Str != "away" || u.Get("updated.displayname").Exists() {
			t.Errorf("asked for: %s", u)
		}
		bob.Must("GET", Path("/profile/%s", alice.UserID), nil)
		if p := byV3(bob.Sync(filter)); p.Exists() {
			t.Errorf("nothing has changed: %s", p)
		}
		setField(alice, "m.status", nil)
		here.Restart() // which forgets the answer of a moment ago
		bob.Must("GET", Path("/profile/%s", alice.UserID), nil)
		if p := byV3(bob.Sync(filter)); !p.Get(`m\.status`).Exists() || p.Get(`m\.status`).Type != gjson.Null {
			t.Errorf("deleted: %s", p)
		}
		if u := sliding(0); u.Get("removed.0").Str != "m.status" {
			t.Errorf("deleted: %s", u)
		}
		alice.Leave(id)
		until("that she has left", func(p gjson.Result) bool { return p.Exists() && p.Type == gjson.Null })
		if u := sliding(0); !u.Exists() || u.Type != gjson.Null {
			t.Errorf("left: %s", u)
		}
	})
}
