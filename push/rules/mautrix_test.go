package rules

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"testing"

	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"
	"maunium.net/go/mautrix/pushrules"
)

// mautrixRoom is Room for mautrix.
type mautrixRoom struct {
	room Room
	pls  *event.PowerLevelsEventContent
}

func (r mautrixRoom) GetOwnDisplayname() string                      { return "Alice" }
func (r mautrixRoom) GetMemberCount() int                            { return int(r.room.MemberCount) }
func (r mautrixRoom) GetPowerLevels() *event.PowerLevelsEventContent { return r.pls }

// mautrix evaluates the same rulesets for random events. It is compared only where it is right: it
// takes event_match for a search in the value, so that patterns here are either whole values or
// values no part of others, knows the room notification alone, and tells names apart by case.
func TestAgreesWithMautrix(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	pick := func(from ...string) string { return from[rnd.IntN(len(from))] }
	for i := range 1000 {
		o := &Overlay{}
		for range rnd.IntN(4) {
			r := Rule{ID: fmt.Sprint(rnd.IntN(9)), Actions: list(`"notify"`, fmt.Sprintf(`{"set_tweak":"sound","value":"s%d"}`, rnd.IntN(3)))}
			switch k := Kind(rnd.IntN(kinds)); k {
			case Override, Underride:
				for range 1 + rnd.IntN(2) {
					r.Conditions = append(r.Conditions, json.RawMessage(pick(
						`{"kind":"event_match","key":"content.msgtype","pattern":"m.emote"}`,
						`{"kind":"event_match","key":"room_id","pattern":"!a:example.org"}`,
						`{"kind":"event_property_is","key":"content.n","value":1}`,
						`{"kind":"event_property_is","key":"content.deep.x\\.y","value":"z"}`,
						`{"kind":"event_property_contains","key":"content.list","value":true}`,
						`{"kind":"room_member_count","is":">2"}`,
						`{"kind":"contains_display_name"}`,
						`{"kind":"sender_notification_permission","key":"room"}`,
						`{"kind":"org.example.unknown"}`)))
				}
				_ = o.Put(k, r, "", "")
			case Content:
				r.Pattern = pick("tea", "c?ke", "hello*world")
				_ = o.Put(k, r, "", "")
			case RoomSpecific:
				r.ID = roomA
				_ = o.Put(k, r, "", "")
			case SenderSpecific:
				r.ID = bob
				_ = o.Put(k, r, "", "")
			}
		}
		if rnd.IntN(10) == 0 {
			_ = o.SetEnabled(Override, ".m.rule.master", true)
		}
		content := fmt.Sprintf(`{"msgtype":%q,"body":%q,"membership":%q,"n":%d,"deep":{"x.y":"z"},"list":[1,%s],"m.mentions":{"user_ids":[%q],"room":%s},"m.relates_to":{"rel_type":%q}}`,
			pick("m.text", "m.notice", "m.emote"), pick("tea", "team", "a cake", "hello, world", "hi Alice", "malice"), pick("join", "invite"), rnd.IntN(2),
			pick("true", "false"), pick("", alice), pick("true", "false"), pick("m.thread", "m.replace"))
		e := message(pick("m.room.message", "m.room.encrypted", "m.reaction", "m.call.invite", "m.room.member", "m.sticker"), content)
		if e.Type == "m.room.member" {
			e.StateKey = stateKey(pick(alice, bob))
		}
		e.RoomID = pick(roomA, "!b:example.org")
		room := Room{MemberCount: int64(1 + rnd.IntN(4)), SenderLevel: int64(rnd.IntN(2) * 50)}

		shown, err := o.Ruleset(alice).AppendJSON(nil)
		if err != nil {
			t.Fatal(err)
		}
		oracle := new(pushrules.PushRuleset)
		if err := json.Unmarshal(shown, oracle); err != nil {
			t.Fatal(err)
		}
		theirs := &event.Event{Type: event.Type{Type: e.Type}, Sender: id.UserID(e.Sender), RoomID: id.RoomID(e.RoomID), StateKey: e.StateKey}
		if err := json.Unmarshal(e.Content, &theirs.Content.Raw); err != nil {
			t.Fatal(err)
		}
		pls := &event.PowerLevelsEventContent{Users: map[id.UserID]int{bob: int(room.SenderLevel)}}
		want := oracle.GetActions(mautrixRoom{room, pls}, theirs).Should()
		got := Compile(o, alice).Evaluate(Prepare(e), &room, "Alice")
		if got.Notify != want.Notify || got.Highlight != want.Highlight || got.Sound != want.SoundName {
			t.Fatalf("round %d: got %s, mautrix %+v\nrules %s\nevent %s %s, room %+v", i, shape(got), want, shown, e.Type, content, room)
		}
	}
}
