package scenario

import (
	"net/url"
	"testing"

	"github.com/tidwall/gjson"

	"github.com/myelin-im/myelin/roomserver/pdu"
	"github.com/myelin-im/myelin/storage/storagetest"
	. "github.com/myelin-im/myelin/test/harness"
)

// On one branch of a room somebody joins, on the other it was closed before that: state resolution takes the join back,
// and no event says so.
func TestMembershipTakenBackByStateResolution(t *testing.T) {
	for _, d := range storagetest.Dialects {
		t.Run(d.String(), func(t *testing.T) {
			s := Start(t, d, Federating(t))
			alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
			id := alice.Create(J{"preset": "public_chat", "room_version": "12"})
			w := enter(t, NewPeer(t, nil), s, id)
			levels := J{}
			for k, v := range alice.Must("GET", Path("/rooms/%s/state/m.room.power_levels/", id), nil).JSON.Map() {
				levels[k] = v.Value()
			}
			levels["users"] = J{w.user: 99}
			promoted := alice.State(id, "m.room.power_levels", "", levels)
			raw := w.peer.Do(s, "GET", fed("/v1/event/%s", promoted), nil).JSON.Get("pdus.0").Raw
			p, err := pdu.Parse(w.v, []byte(raw))
			if err != nil {
				t.Fatal(err)
			}
			w.add(p)
			// The peer closes the room before it hears of the join.
			empty := ""
			closed := w.build("m.room.join_rules", &empty, J{"join_rule": "invite"})
			bob.Join(id)

			knows := url.Values{"use_state_after": {"true"}}
			bob.Sync(knows)
			before := bob.Since()
			sliding := &slider{Client: bob, name: "a"}
			if r := slid(sliding.sync(J{"lists": list(0, 10, 5, everything)}), id); r.Get("membership").Str != "join" {
				t.Fatalf("sliding sync before: %s", r.Raw)
			}
			draft := J{"conn_id": "b", "lists": draftList(0, 10, 5, []string{"*", "*"})}
			first := bob.Must("POST", slidingDraft, draft).JSON
			alice.Sync(nil)

			w.send(closed)
			alice.Until("the room without bob", func(r gjson.Result) bool {
				return Room(r, "join", id).Get(`summary.m\.joined_member_count`).Int() == 2
			})
			alice.Refused(404, "M_NOT_FOUND", "GET", Path("/rooms/%s/state/m.room.member/%s", id, bob.UserID), nil)

			told := Room(bob.Sync(knows), "leave", id)
			if !told.Get("timeline.events").IsArray() || !told.Get("state_after.events").IsArray() || told.Get("state").Exists() {
				t.Errorf("with state_after: %s", told.Raw)
			}
			if again := bob.Sync(knows).Get("rooms"); again.Exists() {
				t.Errorf("it is told twice: %s", again.Raw)
			}
			bob.SyncFrom(before)
			if told = Room(bob.Sync(nil), "leave", id); told.Get("state.events").Raw != "[]" {
				t.Errorf("with state: %s", told.Raw)
			}
			r := slid(sliding.sync(J{"lists": list(0, 10, 5, everything)}), id)
			if r.Get("membership").Str != "leave" || r.Get("required_state.0.state_key").Str != bob.UserID || r.Get("required_state.0.content").Exists() {
				t.Errorf("sliding sync: %s", r.Raw)
			}
			if r = slid(sliding.sync(J{"lists": list(0, 10, 5, everything)}), id); r.Exists() {
				t.Errorf("sliding sync tells it twice: %s", r.Raw)
			}
			if r = slid(bob.Must("POST", slidingDraft+"?pos="+url.QueryEscape(first.Get("pos").Str), draft).JSON, id); !r.Get("initial").Bool() || len(r.Get("timeline").Array()) > 0 {
				t.Errorf("the drafts' dialect: %s", r.Raw)
			}
			bob.SyncFrom("")
			if r = bob.Sync(nil).Get("rooms"); r.Exists() {
				t.Errorf("an initial sync has %s", r.Raw)
			}
		})
	}
}
