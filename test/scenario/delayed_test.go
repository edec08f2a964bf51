package scenario

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/tidwall/gjson"

	"github.com/myelin-im/myelin/homeserver/config"
	"github.com/myelin-im/myelin/storage"

	. "github.com/myelin-im/myelin/test/harness"
)

const delayedEvents = "/_matrix/client/unstable/org.matrix.msc4140"

// later schedules an event by the endpoint for that; a nil key makes it a message.
func later(c *Client, room, typ string, key *string, delay int, content J) string {
	body := J{"delay_ms": delay, "content": content}
	if key != nil {
		body["state_key"] = *key
	}
	return c.Must("PUT", delayedEvents+strings.TrimPrefix(Path("/rooms/%s/delayed_event/%s/%s", room, typ, Txn()), "/_matrix/client/v3"), body).JSON.Get("delay_id").Str
}

// lookUp returns what the owner is told of a delayed event.
func lookUp(c *Client, id string) gjson.Result {
	return c.Must("GET", delayedEvents+"/delayed_events/"+id, nil).JSON
}

// finalised waits until a delayed event has come to its end.
func finalised(t *testing.T, c *Client, id string) gjson.Result {
	t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if e := lookUp(c, id); e.Get("finalised_ts").Exists() {
			return e
		}
	}
	t.Fatalf("%s is not finalised: %s", id, lookUp(c, id))
	return gjson.Result{}
}

const hour = 3_600_000

func TestDelayedEvents(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
		id := alice.Create(J{"preset": "public_chat"})
		bob.Join(id)

		// By time, and in the order of time.
		second := later(alice, id, "m.room.message", nil, 250, J{"body": "second"})
		first := later(alice, id, "m.room.message", nil, 1, J{"body": "first"})
		one, two := finalised(t, alice, first), finalised(t, alice, second)
		if one.Get("event_id").Str == "" || two.Get("event_id").Str == "" || two.Get("finalised_ts").Int() < two.Get("scheduled_at").Int()+250 || two.Get("error").Exists() {
			t.Errorf("sent: %s and %s", one, two)
		}
		event := func(c *Client, e gjson.Result) gjson.Result {
			return c.Must("GET", Path("/rooms/%s/event/%s", id, e.Get("event_id").Str), nil).JSON
		}
		if e := event(alice, two); e.Get("content.body").Str != "second" || e.Get(`unsigned.org\.matrix\.msc4140\.delay_id`).Str != second || e.Get("unsigned.transaction_id").Exists() {
			t.Errorf("as its sender sees it: %s", e)
		}
		if e := event(bob, two); e.Get(`unsigned.org\.matrix\.msc4140\.delay_id`).Exists() {
			t.Errorf("as others see it: %s", e)
		}
		s.Restart()
		if e := event(alice, two); e.Get(`unsigned.org\.matrix\.msc4140\.delay_id`).Str != second {
			t.Errorf("as its sender sees it after a restart: %s", e)
		}

		// The older form: a parameter of /state and /send.
		delay := "?org.matrix.msc4140.delay="
		old := alice.Must("PUT", Path("/rooms/%s/state/%s/%s", id, "test.call", "me")+delay+fmt.Sprint(hour), J{"in": false}).JSON.Get("delay_id").Str
		txn := Path("/rooms/%s/send/%s/%s", id, "m.room.message", Txn()) + delay + fmt.Sprint(hour+1) // the list goes by time
		message := alice.Must("PUT", txn, J{"body": "m"}).JSON.Get("delay_id").Str
		if again := alice.Must("PUT", txn, J{"body": "m"}).JSON.Get("delay_id").Str; again != message || message == "" || old == "" {
			t.Errorf("a repeated transaction: %q, first %q", again, message)
		}
		list := alice.Must("GET", delayedEvents+"/delayed_events", nil).JSON
		if ids := list.Get("delayed_events.#.delay_id"); len(ids.Array()) != 2 || ids.Get("0").Str != old || list.Get("delayed_events.0.state_key").Str != "me" ||
			list.Get("delayed_events.1.state_key").Exists() || list.Get("delayed_events.0.delay_ms").Int() != hour || len(list.Get("finalised").Array()) != 2 ||
			list.Get("finalised.0.outcome").Str != "send" || list.Get("finalised.0.reason").Str != "delay" {
			t.Errorf("the list: %s", list)
		}
		if bobs := bob.Must("GET", delayedEvents+"/delayed_events", nil).JSON; len(bobs.Get("delayed_events").Array()) != 0 {
			t.Errorf("bob's list: %s", bobs)
		}

		// A service without a token may manage, other users may not, and clients may name the action in the body.
		service := s.Client(t)
		manage := func(id, action string) string { return delayedEvents + "/delayed_events/" + id + "/" + action }
		before := lookUp(alice, old).Get("scheduled_at").Int()
		time.Sleep(2 * time.Millisecond)
		service.Must("POST", manage(old, "restart"), nil)
		if after := lookUp(alice, old).Get("scheduled_at").Int(); after <= before {
			t.Errorf("restarted at %d, scheduled at %d", after, before)
		}
		for _, action := range []string{"send", "cancel", "restart"} {
			bob.Refused(404, "M_NOT_FOUND", "POST", manage(old, action), J{})
			alice.Refused(404, "M_NOT_FOUND", "POST", manage("nothing", action), J{})
		}
		bob.Refused(404, "M_NOT_FOUND", "GET", delayedEvents+"/delayed_events/"+old, nil)
		alice.Refused(404, "M_UNRECOGNIZED", "POST", manage(old, "other"), J{})
		alice.Refused(400, "M_INVALID_PARAM", "POST", delayedEvents+"/delayed_events/"+old, J{"action": "other"})
		alice.Must("POST", delayedEvents+"/delayed_events/"+old, J{"action": "send"})
		if e := alice.Must("GET", Path("/rooms/%s/state/%s/%s", id, "test.call", "me"), nil).JSON; e.Get("in").Type != gjson.False {
			t.Errorf("the state: %s", e)
		}
		alice.Must("POST", manage(old, "send"), J{})
		alice.Refused(409, "M_UNKNOWN", "POST", manage(old, "cancel"), J{})
		alice.Refused(404, "M_NOT_FOUND", "POST", manage(old, "restart"), J{})
		alice.Must("POST", manage(message, "cancel"), J{})
		alice.Must("POST", manage(message, "cancel"), J{})
		alice.Refused(409, "M_UNKNOWN", "POST", manage(message, "send"), J{})
		alice.Refused(409, "M_UNKNOWN", "POST", manage(message, "restart"), J{})
		if e := lookUp(alice, message); e.Get("event_id").Exists() || e.Get("error").Exists() || !e.Get("finalised_ts").Exists() {
			t.Errorf("cancelled: %s", e)
		}

		// State that stands already is sent, too, and another user's state does not cancel it.
		same := ""
		kept := later(alice, id, "test.call", &same, hour, J{"a": 1})
		stands := alice.State(id, "test.call", "", J{"a": 1})
		alice.Must("POST", manage(kept, "send"), J{})
		if e := lookUp(alice, kept); e.Get("event_id").Str != stands {
			t.Errorf("what stands is %s: %s", stands, e)
		}
	})
}

func TestDelayedAuthorised(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
		id := alice.Create(J{"preset": "public_chat"})
		bob.Join(id)
		key := ""
		// What is forbidden now may be allowed then, and the other way round.
		topic := later(bob, id, "m.room.topic", &key, hour, J{"topic": "bob's"})
		manage := func(id, action string) string { return delayedEvents + "/delayed_events/" + id + "/" + action }
		bob.Refused(403, "M_FORBIDDEN", "POST", manage(topic, "send"), J{})
		if e := lookUp(bob, topic); e.Get("finalised_ts").Exists() {
			t.Errorf("an attempt ends nothing: %s", e)
		}
		levels := alice.Must("GET", Path("/rooms/%s/state/%s/%s", id, "m.room.power_levels", ""), nil).JSON.Value().(map[string]any)
		levels["events"] = J{"m.room.topic": 0}
		alice.State(id, "m.room.power_levels", "", levels)
		bob.Must("POST", manage(topic, "send"), J{})
		late := later(bob, id, "m.room.name", &key, 1, J{"name": "bob's"})
		if e := finalised(t, bob, late); e.Get("error.errcode").Str != "M_FORBIDDEN" || e.Get("event_id").Exists() {
			t.Errorf("forbidden when its time came: %s", e)
		}
		list := bob.Must("GET", delayedEvents+"/delayed_events?status=finalised", nil).JSON
		if f := list.Get("finalised.0"); f.Get("reason").Str != "error" || f.Get("outcome").Str != "cancel" || f.Get("delayed_event.delay_id").Str != late {
			t.Errorf("finalised: %s", list)
		}
		// Logging out keeps a leave that was announced; ending the account does not.
		phone := bob.Login()
		left := later(phone, id, "m.room.message", nil, 100, J{"body": "left"})
		phone.Must("POST", "/_matrix/client/v3/logout", J{})
		if e := finalised(t, bob, left); e.Get("event_id").Str == "" {
			t.Errorf("after logging out: %s", e)
		}
		last := later(bob, id, "m.room.message", nil, hour, J{"body": "last"})
		bob.Must("POST", "/_matrix/client/v3/account/deactivate", J{"auth": J{"type": "m.login.password", "password": Password, "identifier": J{"type": "m.id.user", "user": bob.UserID}}})
		s.Client(t).Refused(404, "M_NOT_FOUND", "POST", manage(last, "send"), J{})
	})
}

func TestDelayedAcrossRestart(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice := s.Register(t, "alice")
		id := alice.Create(J{})
		var ids []string
		for i := range 5 {
			ids = append(ids, later(alice, id, "m.room.message", nil, 60-10*i, J{"body": fmt.Sprint(i)}))
		}
		waits := later(alice, id, "m.room.message", nil, hour, J{"body": "waits"})
		s.Restart()
		for _, d := range ids {
			if e := finalised(t, alice, d); e.Get("event_id").Str == "" {
				t.Errorf("after the restart: %s", e)
			}
		}
		if e := lookUp(alice, waits); e.Get("finalised_ts").Exists() {
			t.Errorf("its time has not come: %s", e)
		}
		seen := map[string]int{}
		for _, event := range alice.Walk(id, "", "b", 50) {
			seen[event]++
		}
		for _, d := range ids {
			if n := seen[lookUp(alice, d).Get("event_id").Str]; n != 1 {
				t.Errorf("%s is %d times in the room", d, n)
			}
		}
	})
}

func TestDelayedLimits(t *testing.T) {
	s := Start(t, storage.SQLite, func(c *config.Config) {
		c.DelayedEvents.MaxDelay, c.DelayedEvents.MaxScheduled = time.Hour, 2
	})
	alice := s.Register(t, "alice")
	id := alice.Create(J{})
	capability := alice.Must("GET", Path("/capabilities"), nil).JSON.Get(`capabilities.org\.matrix\.msc4140\.delayed_events`)
	if capability.Get("max_delay_ms").Int() != hour || capability.Get("max_scheduled").Int() != 2 {
		t.Errorf("capability: %s", capability)
	}
	if !alice.Must("GET", "/_matrix/client/versions", nil).JSON.Get(`unstable_features.org\.matrix\.msc4140`).Bool() {
		t.Error("the flag is missing")
	}
	path := func() string {
		return delayedEvents + strings.TrimPrefix(Path("/rooms/%s/delayed_event/%s/%s", id, "m.room.message", Txn()), "/_matrix/client/v3")
	}
	for _, body := range []J{{"delay_ms": 0, "content": J{}}, {"delay_ms": -1, "content": J{}}} {
		alice.Refused(400, "M_INVALID_PARAM", "PUT", path(), body)
	}
	alice.Refused(400, "M_BAD_JSON", "PUT", path(), J{"delay_ms": 1, "content": 1})
	alice.Refused(400, "M_MISSING_PARAM", "PUT", path(), J{"delay_ms": 1})
	alice.Refused(413, "M_TOO_LARGE", "PUT", path(), J{"delay_ms": 1, "content": J{"body": strings.Repeat("x", 70_000)}})
	long := alice.Refused
	long(403, "M_FORBIDDEN", "PUT", path(), J{"delay_ms": hour + 1, "content": J{}})
	long(400, "M_UNKNOWN", "PUT", Path("/rooms/%s/send/%s/%s", id, "m.room.message", Txn())+"?org.matrix.msc4140.delay=3600001", J{})
	a := alice.Do("PUT", Path("/rooms/%s/send/%s/%s", id, "m.room.message", Txn())+"?org.matrix.msc4140.delay=3600001", J{})
	if a.JSON.Get(`org\.matrix\.msc4140\.errcode`).Str != "M_MAX_DELAY_EXCEEDED" || a.JSON.Get(`org\.matrix\.msc4140\.max_delay`).Int() != hour {
		t.Errorf("too long: %s", a)
	}
	first := later(alice, id, "m.room.message", nil, hour/2, J{})
	later(alice, id, "m.room.message", nil, hour, J{})
	a = alice.Do("PUT", path(), J{"delay_ms": 1000, "content": J{}})
	var after int
	if fmt.Sscan(a.Header.Get("Retry-After"), &after); a.Status != 429 || a.Code() != "M_LIMIT_EXCEEDED" || after < 1000 || after > 1800 {
		t.Errorf("too many: %s, retry after %d", a, after)
	}
	alice.Must("POST", delayedEvents+"/delayed_events/"+first+"/cancel", J{})
	later(alice, id, "m.room.message", nil, hour, J{})
}

// TestDelayedHeartbeat is the leave of a call's member: restarted every second, with a burst of twenty.
func TestDelayedHeartbeat(t *testing.T) {
	s := Start(t, storage.SQLite, func(c *config.Config) { c.RateLimits.Enabled = true })
	alice := s.Register(t, "alice")
	id := alice.Create(J{})
	leave := later(alice, id, "m.room.message", nil, hour, J{"body": "gone"})
	service := s.Client(t)
	for range 20 {
		alice.Must("POST", delayedEvents+"/delayed_events/"+leave+"/restart", J{})
		service.Must("POST", delayedEvents+"/delayed_events/"+leave+"/restart", nil)
	}
}
