package authrules

import (
	"bytes"
	"slices"
	"unicode/utf8"

	"github.com/myelin-im/myelin/internal/canonicaljson"
	"github.com/myelin-im/myelin/roomserver/pdu"
)

// Memberships: values of content.membership of m.room.member.
const (
	MembershipInvite = "invite"
	MembershipJoin   = "join"
	MembershipKnock  = "knock" // room version 7 and later
	MembershipLeave  = "leave"
	MembershipBan    = "ban"
)

// Join rules: values of content.join_rule of m.room.join_rules.
const (
	JoinRulePublic          = "public"
	JoinRuleInvite          = "invite"
	JoinRuleKnock           = "knock"            // room version 7 and later
	JoinRuleRestricted      = "restricted"       // room version 8 and later
	JoinRuleKnockRestricted = "knock_restricted" // room version 10 and later
)

// parse makes the value of an event's cache slot. It depends on the type only, so that every reader
// of the slot finds the same kind of value.
func parse(ev *pdu.Event) any {
	switch ev.Type {
	case pdu.TypeCreate:
		return newCreateContent(ev)
	case pdu.TypePowerLevels:
		return parsePower(ev.Version(), ev.Content())
	case pdu.TypeJoinRules:
		return parseJoinRule(ev.Content())
	}
	return nil
}

// createContent is what the rules need to know of m.room.create.
type createContent struct {
	server     string // of the sender
	creators   []string
	privileged bool // whether creators stand above all levels
	federate   bool
	// withoutLevels are the levels of the room while it has no m.room.power_levels.
	withoutLevels Levels
}

// noCreate stands for a create event that is not there: nobody is a creator.
var noCreate = func() *createContent {
	c := &createContent{}
	c.withoutLevels = Levels{content: &powerContent{}, create: c}
	return c
}()

func newCreateContent(ev *pdu.Event) *createContent {
	c := &createContent{
		server:     ev.SenderServer(),
		creators:   ev.Creators(),
		privileged: ev.Version().CreatorsPrivileged,
		federate:   string(ev.ContentField("m.federate")) != "false",
	}
	// A creator property that is empty or no string names nobody.
	c.creators = slices.DeleteFunc(c.creators, func(id string) bool { return id == "" })
	c.withoutLevels = Levels{content: &powerContent{}, create: c}
	return c
}

func createOf(ev *pdu.Event) *createContent {
	if ev == nil {
		return noCreate
	}
	if c, ok := ev.Cached(parse).(*createContent); ok {
		return c
	}
	return noCreate
}

// Creators are the creators of a room: up to version 10 the user that the create event names, from
// version 11 its sender, and from version 12 content.additional_creators as well. The slice is
// shared; the caller must not change it.
func Creators(create *pdu.Event) []string { return createOf(create).creators }

// JoinRule is the content of m.room.join_rules.
type JoinRule struct {
	// Rule is the rule's name. It may be one that the room's version does not know, and nobody
	// joins by such a rule; "" where it is no string.
	Rule string
	// Rooms are the rooms whose members may join by the rules restricted and knock_restricted:
	// the allow entries of type m.room_membership, in their order.
	Rooms []string
}

var inviteOnly = &JoinRule{Rule: JoinRuleInvite}

// JoinRules returns the join rule of a room whose current m.room.join_rules event is ev. Without one
// (nil), the room is invite-only. The result is shared; the caller must not change it.
func JoinRules(ev *pdu.Event) *JoinRule {
	if ev == nil {
		return inviteOnly
	}
	if j, ok := ev.Cached(parse).(*JoinRule); ok {
		return j
	}
	return inviteOnly
}

func parseJoinRule(content []byte) *JoinRule {
	rule := canonicaljson.Member(content, "join_rule")
	if rule == nil {
		return inviteOnly
	}
	j := &JoinRule{}
	j.Rule, _ = text(rule)
	for w := canonicaljson.Walk(canonicaljson.Member(content, "allow")); w.Next(); {
		kind, _ := text(canonicaljson.Member(w.Value, "type"))
		room, ok := text(canonicaljson.Member(w.Value, "room_id"))
		if ok && kind == "m.room_membership" {
			j.Rooms = append(j.Rooms, room)
		}
	}
	return j
}

// text copies the text of a JSON string; ok is false for anything else.
func text(token []byte) (s string, ok bool) {
	b, ok := canonicaljson.DecodeString(token)
	return string(b), ok
}

// nameOf copies the name of the member that a walker stands at.
func nameOf(w *canonicaljson.Walker) string {
	if bytes.IndexByte(w.Name, '\\') < 0 {
		return string(w.Name)
	}
	name, _ := text(slices.Concat([]byte{'"'}, w.Name, []byte{'"'}))
	return name
}

// validUserID applies to a user ID in content what the format of events demands of a sender.
func validUserID(v *pdu.Version, id string) bool {
	size := len(id)
	if size > pdu.MaxFieldSize && !v.StrictByteLimits {
		size = utf8.RuneCountInString(id)
	}
	return size <= pdu.MaxFieldSize && pdu.ValidUserID(id)
}
