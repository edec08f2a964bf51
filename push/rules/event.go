package rules

import (
	"strconv"
	"strings"
	"sync"

	"github.com/tidwall/gjson"
)

// Event is what the conditions may look at of an event: its properties as clients see them.
type Event struct {
	Type, Sender, RoomID, EventID string
	// StateKey is nil for an event that is no state event.
	StateKey *string
	// OriginServerTS is the sender's clock in milliseconds.
	OriginServerTS int64
	// Content is the event's content, a valid JSON object.
	Content []byte
}

// Prepared is an event looked at once for all users whose rules will be applied to it. It holds no
// reference to the Event it was made of, and may be used by several goroutines.
type Prepared struct {
	sender, roomID string
	known          [slots]value
	origin         struct {
		eventID string
		ts      int64
	}
	content  string  // JSON
	defaults ruleSet // the predefined rules whose conditions on the event alone hold

	mu     sync.Mutex
	lookup map[string]*value // guarded by mu; properties outside slots that some rule asked for
}

// maxLookups bounds the cache of looked-up properties of one event: 64 different ones cover what
// clients write rules about, beyond it a property is looked up each time.
const maxLookups = 64

// slot names the properties that are extracted by Prepare, because the predefined rules or the
// rules that clients write ask for them.
type slot uint8

const (
	slotOther slot = iota // looked up by path
	slotType
	slotSender
	slotRoomID
	slotStateKey
	slotBody
	slotMsgtype
	slotMembership
	slotRelType
	slotMentionedRoom
	slotMentionedUsers
	slots
)

// slotOf gives the slot of a property by its unescaped path.
func slotOf(path []string) slot {
	switch len(path) {
	case 1:
		switch path[0] {
		case "type":
			return slotType
		case "sender":
			return slotSender
		case "room_id":
			return slotRoomID
		case "state_key":
			return slotStateKey
		}
	case 2:
		if path[0] != "content" {
			break
		}
		switch path[1] {
		case "body":
			return slotBody
		case "msgtype":
			return slotMsgtype
		case "membership":
			return slotMembership
		}
	case 3:
		if path[0] != "content" {
			break
		}
		switch {
		case path[1] == "m.relates_to" && path[2] == "rel_type":
			return slotRelType
		case path[1] == "m.mentions" && path[2] == "room":
			return slotMentionedRoom
		case path[1] == "m.mentions" && path[2] == "user_ids":
			return slotMentionedUsers
		}
	}
	return slotOther
}

// Prepare looks at an event once for all users of its room.
func Prepare(e *Event) *Prepared {
	p := &Prepared{sender: e.Sender, roomID: e.RoomID, content: string(e.Content)}
	p.origin.eventID, p.origin.ts = e.EventID, e.OriginServerTS
	p.known[slotType] = stringValue(e.Type)
	p.known[slotSender] = stringValue(e.Sender)
	p.known[slotRoomID] = stringValue(e.RoomID)
	if e.StateKey != nil {
		p.known[slotStateKey] = stringValue(*e.StateKey)
	}
	// Of a property given twice the last one counts, as for the readers of JSON in clients.
	gjson.Parse(p.content).ForEach(func(k, v gjson.Result) bool {
		switch k.Str {
		case "body":
			p.known[slotBody] = jsonValue(v)
		case "msgtype":
			p.known[slotMsgtype] = jsonValue(v)
		case "membership":
			p.known[slotMembership] = jsonValue(v)
		case "m.relates_to":
			p.known[slotRelType] = jsonValue(member(v, "rel_type"))
		case "m.mentions":
			p.known[slotMentionedRoom] = jsonValue(member(v, "room"))
			p.known[slotMentionedUsers] = jsonValue(member(v, "user_ids"))
		}
		return true
	})
	for i := range predefined {
		if holdAll(predefined[i].static, p, nil, nil) {
			p.defaults |= 1 << i
		}
	}
	return p
}

// property returns the property that a condition names.
func (p *Prepared) property(c *condition) *value {
	if c.slot != slotOther {
		return &p.known[c.slot]
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	v, ok := p.lookup[c.key]
	if !ok {
		found := p.find(c.path)
		v = &found
		if p.lookup == nil {
			p.lookup = make(map[string]*value)
		}
		if len(p.lookup) < maxLookups {
			p.lookup[c.key] = v
		}
	}
	return v
}

// threadProperty is where an event names the root of its thread.
var threadProperty = propertyCondition(opIs, `content.m\.relates_to.event_id`, scalar{})

// thread is the event ID of the root of the thread that the event is part of, or empty.
func (p *Prepared) thread() string {
	if p.known[slotRelType].str != "m.thread" {
		return ""
	}
	return p.property(&threadProperty).str
}

// find looks up a property by its unescaped path.
func (p *Prepared) find(path []string) value {
	if path[0] != "content" {
		if len(path) > 1 {
			return value{}
		}
		switch path[0] {
		case "event_id":
			return stringValue(p.origin.eventID)
		case "origin_server_ts":
			return value{scalar: scalar{typ: typeInteger, num: p.origin.ts}}
		}
		return value{}
	}
	at := gjson.Parse(p.content)
	for _, name := range path[1:] {
		if at = member(at, name); !at.Exists() {
			return value{}
		}
	}
	return jsonValue(at)
}

// member returns the member of a JSON object, the last one of that name; nothing of anything else.
func member(object gjson.Result, name string) (found gjson.Result) {
	if !object.IsObject() {
		return found
	}
	object.ForEach(func(k, v gjson.Result) bool {
		if k.Str == name {
			found = v
		}
		return true
	})
	return found
}

type valueType uint8

const (
	typeAbsent  valueType = iota // or of a type that no condition can match
	typeString                   //
	typeInteger                  // within ±(2^53-1)
	typeTrue                     //
	typeFalse                    //
	typeNull                     //
	typeArray
)

// scalar is a non-compound value of canonical JSON, comparable with ==.
type scalar struct {
	typ valueType
	str string
	num int64
}

// value is a property of an event.
type value struct {
	scalar
	fold  string              // str in lower case
	items []scalar            // of an array, those that are scalars
	set   map[scalar]struct{} // the items of a long array
}

// longArray is the length from which a set is quicker than a look at each item. A message may
// mention thousands of users, and each reader looks for itself.
const longArray = 16

func stringValue(s string) value {
	return value{scalar: scalar{typ: typeString, str: s}, fold: strings.ToLower(s)}
}

// jsonValue reads a property from JSON.
func jsonValue(v gjson.Result) value {
	if v.IsArray() {
		out := value{scalar: scalar{typ: typeArray}}
		v.ForEach(func(_, item gjson.Result) bool {
			if s := jsonScalar(item); s.typ != typeAbsent {
				out.items = append(out.items, s)
			}
			return true
		})
		if len(out.items) > longArray {
			out.set = make(map[scalar]struct{}, len(out.items))
			for _, s := range out.items {
				out.set[s] = struct{}{}
			}
		}
		return out
	}
	s := jsonScalar(v)
	if s.typ == typeString {
		return stringValue(s.str)
	}
	return value{scalar: s}
}

// jsonScalar reads a string, an integer of canonical JSON, a boolean or null; else its type is typeAbsent.
func jsonScalar(v gjson.Result) scalar {
	switch v.Type {
	case gjson.String:
		return scalar{typ: typeString, str: v.Str}
	case gjson.True:
		return scalar{typ: typeTrue}
	case gjson.False:
		return scalar{typ: typeFalse}
	case gjson.Null:
		if v.Raw == "" { // absent
			return scalar{}
		}
		return scalar{typ: typeNull}
	case gjson.Number:
		const limit = 1<<53 - 1
		n, err := strconv.ParseInt(v.Raw, 10, 64) // fails for fractions and exponents
		if err == nil && -limit <= n && n <= limit {
			return scalar{typ: typeInteger, num: n}
		}
	}
	return scalar{}
}

// contains tells whether the value is an array that has s.
func (v *value) contains(s scalar) bool {
	if v.set != nil {
		_, ok := v.set[s]
		return ok
	}
	for i := range v.items {
		if v.items[i] == s {
			return true
		}
	}
	return false
}
