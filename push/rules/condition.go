package rules

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/tidwall/gjson"
)

// Room is what conditions ask about the room, at the position of the event. It is shared by all
// users of the room and not changed while in use.
type Room struct {
	// MemberCount is the number of joined members.
	MemberCount int64
	// SenderLevel is the power level of the event's sender, math.MaxInt64 for a creator in room
	// versions whose creators stand above all levels.
	SenderLevel int64
	// NotificationLevels is "notifications" of the power levels: the level that a sender needs by
	// the kind of notification. What is missing needs [DefaultNotificationLevel].
	NotificationLevels map[string]int64
}

// DefaultNotificationLevel is what a sender needs for a kind of notification that the power levels do not name.
//
// spec: client-server-api v1.19 "m.room.power_levels"
const DefaultNotificationLevel = 50

type operator uint8

const (
	opNever            operator = iota // unknown or malformed: matches no event
	opMatch                            // event_match
	opMatchWords                       // event_match of content.body
	opIs                               // event_property_is
	opContains                         // event_property_contains
	opMatchUser                        // event_match with the reader's user ID
	opContainsUser                     // event_property_contains with the reader's user ID
	opDisplayName                      // contains_display_name
	opMemberCount                      // room_member_count
	opSenderPermission                 // sender_notification_permission
	opThread                           // thread_subscription
)

// static tells whether the operator looks at the event alone.
func (o operator) static() bool { return o <= opContains }

// condition is a condition ready to be asked.
type condition struct {
	op      operator
	slot    slot
	compare comparison
	key     string   // as written; of opSenderPermission, the kind of notification
	path    []string // key, split and unescaped
	pattern *pattern
	value   scalar
	count   int64
	// subscribed is the state of the subscription that opThread asks for.
	subscribed bool
}

type comparison uint8

const (
	equal comparison = iota
	less
	lessOrEqual
	greater
	greaterOrEqual
)

// userPlaceholder stands in the definitions of predefined rules where the owner's user ID belongs.
const userPlaceholder = "[the user's Matrix ID]"

// compileCondition reads a condition. "Unrecognised conditions MUST NOT match any events", and so
// do known ones without the parameters that they require. (Not encoding/json: it takes members
// whose names differ in case.)
func compileCondition(raw json.RawMessage) condition {
	in := gjson.ParseBytes(raw)
	kind, _ := stringMember(in, "kind")
	key, hasKey := stringMember(in, "key")
	switch kind {
	case "event_match":
		if glob, ok := stringMember(in, "pattern"); ok && hasKey {
			return eventMatch(key, glob)
		}
	case "event_property_is":
		if v := jsonScalar(member(in, "value")); v.typ != typeAbsent && hasKey {
			return propertyCondition(opIs, key, v)
		}
	case "event_property_contains":
		if v := jsonScalar(member(in, "value")); v.typ != typeAbsent && hasKey {
			return propertyCondition(opContains, key, v)
		}
	case "contains_display_name":
		return condition{op: opDisplayName}
	case "room_member_count":
		if is, ok := stringMember(in, "is"); ok {
			return memberCount(is)
		}
	case "io.element.msc4306.thread_subscription":
		if v := member(in, "subscribed"); v.IsBool() {
			return condition{op: opThread, subscribed: v.Bool()}
		}
	case "sender_notification_permission":
		if hasKey {
			return condition{op: opSenderPermission, key: key}
		}
	}
	return condition{}
}

// stringMember returns the member of a JSON object if it is a string.
func stringMember(object gjson.Result, name string) (string, bool) {
	v := member(object, name)
	return v.Str, v.Type == gjson.String
}

// forReader turns a condition whose parameter is the placeholder into one on the reader's user ID.
func (c condition) forReader(raw json.RawMessage) condition {
	if !strings.Contains(string(raw), userPlaceholder) {
		return c
	}
	switch c.op {
	case opMatch:
		c.op, c.pattern = opMatchUser, nil
	case opContains:
		c.op, c.value = opContainsUser, scalar{}
	default:
		c.op = opNever
	}
	return c
}

func propertyCondition(op operator, key string, v scalar) condition {
	path := splitPath(key)
	return condition{op: op, key: key, path: path, slot: slotOf(path), value: v}
}

func eventMatch(key, glob string) condition {
	c := propertyCondition(opMatch, key, scalar{})
	if c.slot == slotBody {
		c.op = opMatchWords
	}
	c.pattern = compilePattern(glob)
	return c
}

func memberCount(is string) condition {
	c := condition{op: opMemberCount}
	switch {
	case strings.HasPrefix(is, "=="):
		is = is[2:]
	case strings.HasPrefix(is, "<="):
		c.compare, is = lessOrEqual, is[2:]
	case strings.HasPrefix(is, ">="):
		c.compare, is = greaterOrEqual, is[2:]
	case strings.HasPrefix(is, "<"):
		c.compare, is = less, is[1:]
	case strings.HasPrefix(is, ">"):
		c.compare, is = greater, is[1:]
	}
	n, err := strconv.ParseUint(is, 10, 63) // no sign: the operator is the only prefix
	if err != nil {
		return condition{}
	}
	c.count = int64(n)
	return c
}

// splitPath splits a dot-separated path: "\." and "\\" are a dot and a backslash of a name, other
// escape sequences are left as they are.
//
// spec: appendices v1.19 "Dot-separated property paths"
func splitPath(key string) []string {
	if !strings.Contains(key, `\`) {
		return strings.Split(key, ".")
	}
	var path []string
	var name []byte
	for i := 0; i < len(key); i++ {
		switch {
		case key[i] == '.':
			path = append(path, string(name))
			name = name[:0]
		case key[i] == '\\' && i+1 < len(key) && (key[i+1] == '.' || key[i+1] == '\\'):
			i++
			name = append(name, key[i])
		default:
			name = append(name, key[i])
		}
	}
	return append(path, string(name))
}

// reader is for whom conditions are asked.
type reader struct {
	user, userFold string
	displayName    string
	budget         int
	threads        map[string]bool // subscribed to
}

// holdAll tells whether all conditions hold. Conditions on the event alone need neither room nor reader.
func holdAll(conditions []condition, p *Prepared, room *Room, by *reader) bool {
	for i := range conditions {
		if !conditions[i].holds(p, room, by) {
			return false
		}
	}
	return true
}

func (c *condition) holds(p *Prepared, room *Room, by *reader) bool {
	switch c.op {
	case opMatch, opMatchWords:
		v := p.property(c)
		if v.typ != typeString {
			return false
		}
		// The patterns of predefined rules are literals, for which no budget is needed.
		spare := evaluationBudget
		budget := &spare
		if by != nil {
			budget = &by.budget
		}
		if c.op == opMatchWords {
			return c.pattern.matchWords(v.fold, budget)
		}
		return c.pattern.matchAll(v.fold, budget)
	case opIs:
		return p.property(c).scalar == c.value
	case opContains:
		return p.property(c).contains(c.value)
	case opMatchUser:
		v := p.property(c)
		return v.typ == typeString && v.fold == by.userFold
	case opContainsUser:
		return p.property(c).contains(scalar{typ: typeString, str: by.user})
	case opDisplayName:
		body := &p.known[slotBody]
		return by.displayName != "" && body.typ == typeString &&
			literalPattern(by.displayName).matchWords(body.fold, &by.budget)
	case opMemberCount:
		return c.compare.holds(room.MemberCount, c.count)
	case opThread:
		root := p.thread()
		return root != "" && by.threads[root] == c.subscribed
	case opSenderPermission:
		level, ok := room.NotificationLevels[c.key]
		if !ok {
			level = DefaultNotificationLevel
		}
		return room.SenderLevel >= level
	}
	return false
}

func (o comparison) holds(a, b int64) bool {
	switch o {
	case less:
		return a < b
	case lessOrEqual:
		return a <= b
	case greater:
		return a > b
	case greaterOrEqual:
		return a >= b
	}
	return a == b
}

// ErrCondition is in the chain of the error for something that is no condition at all.
var ErrCondition = errors.New("invalid push rule condition")

// maxConditions bounds the conditions of one rule.
const maxConditions = 64

// ParseConditions checks and compacts the "conditions" of a request: objects that name their kind.
// Kinds unknown here are kept, for the clients that know them, and match nothing. The error is safe
// to show and has [ErrCondition] in its chain.
func ParseConditions(list []json.RawMessage) ([]json.RawMessage, error) {
	if len(list) > maxConditions {
		return nil, fmt.Errorf("%w: more than %d conditions", ErrCondition, maxConditions)
	}
	out := make([]json.RawMessage, 0, len(list))
	for _, raw := range list {
		if _, ok := stringMember(gjson.ParseBytes(raw), "kind"); !ok {
			return nil, fmt.Errorf("%w: a condition is an object with a kind", ErrCondition)
		}
		short, err := compact(raw)
		if err != nil {
			return nil, err
		}
		out = append(out, short)
	}
	return out, nil
}
