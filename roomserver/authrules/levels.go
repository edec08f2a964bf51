package authrules

import (
	"math"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/myelin-im/myelin/internal/canonicaljson"
	"github.com/myelin-im/myelin/roomserver/pdu"
)

// Infinite is the power level of a room's creators from room version 12 on. No level that an event
// can state there is as high.
const Infinite int64 = math.MaxInt64

// legacyCreatorLevel is the level of the creator of a room without power levels before version 12.
const legacyCreatorLevel = 100

// The levels that have a property of their own in m.room.power_levels, in the order in which the
// rules name them.
const (
	levelUsersDefault = iota
	levelEventsDefault
	levelStateDefault
	levelBan
	levelRedact
	levelKick
	levelInvite
	namedLevels
)

var levelNames = [namedLevels]string{
	"users_default", "events_default", "state_default", "ban", "redact", "kick", "invite",
}

// levelDefaults are the levels of a room whose power levels do not state them.
//
// spec: client-server-api "m.room.power_levels"
var levelDefaults = [namedLevels]int64{
	levelStateDefault: 50, levelBan: 50, levelRedact: 50, levelKick: 50,
}

// Levels are the power levels of a room at some point. They are immutable and safe for concurrent
// use.
type Levels struct {
	content *powerContent
	create  *createContent
	stated  bool // whether there is an m.room.power_levels event
}

// PowerLevels returns the levels of a room whose current m.room.power_levels and m.room.create
// events are ev and create. Without power levels (ev nil) the specification's defaults hold;
// without a create event (nil) the room has no creator.
func PowerLevels(ev, create *pdu.Event) *Levels {
	c := createOf(create)
	if ev == nil {
		return &c.withoutLevels
	}
	p := powerOf(ev)
	if l := p.levels.Load(); l != nil && l.create == c {
		return l
	}
	l := &Levels{content: p, create: c, stated: true}
	p.levels.Store(l)
	return l
}

// User is the power level of a user: Infinite for creators from room version 12 on.
func (l *Levels) User(userID string) int64 {
	if l.create.privileged || !l.stated {
		if slices.Contains(l.create.creators, userID) {
			if l.create.privileged {
				return Infinite
			}
			return legacyCreatorLevel
		}
	}
	if level, ok := l.content.users.get(userID); ok {
		return level
	}
	return l.named(levelUsersDefault)
}

// Event is the level required to send an event of a type, as a state event or as a message.
// Memberships and third-party invites do not follow it; they have rules of their own.
func (l *Levels) Event(eventType string, isState bool) int64 {
	if level, ok := l.content.events.get(eventType); ok {
		return level
	}
	if isState {
		return l.named(levelStateDefault)
	}
	return l.named(levelEventsDefault)
}

// Invite is the level required to invite.
func (l *Levels) Invite() int64 { return l.named(levelInvite) }

// Kick is the level required to remove a user of a lower level.
func (l *Levels) Kick() int64 { return l.named(levelKick) }

// Ban is the level required to ban a user of a lower level and, besides Kick, to lift a ban.
func (l *Levels) Ban() int64 { return l.named(levelBan) }

// Redact is the level required to redact events of other servers' users.
func (l *Levels) Redact() int64 { return l.named(levelRedact) }

func (l *Levels) named(i int) int64 {
	if l.content.present[i] {
		return l.content.named[i]
	}
	return levelDefaults[i]
}

// powerContent is the content of an m.room.power_levels event.
type powerContent struct {
	named                        [namedLevels]int64
	present                      [namedLevels]bool
	users, events, notifications entries
	// fault is the first rule on the format that the content breaks, or noRule. What cannot be
	// read counts as absent.
	fault       rule
	faultReason string
	// levels is this content with the create event it was last asked about with.
	levels atomic.Pointer[Levels]
}

func powerOf(ev *pdu.Event) *powerContent {
	if p, ok := ev.Cached(parse).(*powerContent); ok {
		return p
	}
	return parsePower(ev.Version(), ev.Content())
}

// parsePower reads the content of m.room.power_levels as room version v writes it.
//
// Before version 10 there is no rule about the form of anything but users. Other levels that cannot
// be read are refused there by the same rule: servers that read them differently, or fail on
// them, would not agree on who may do what. Only null counts as absent, as it does for most.
func parsePower(v *pdu.Version, content []byte) *powerContent {
	var named [namedLevels][]byte
	var users, events, notifications []byte
	for w := canonicaljson.Walk(content); w.Next(); {
		switch string(w.Name) {
		case "users":
			users = w.Value
		case "events":
			events = w.Value
		case "notifications":
			notifications = w.Value
		default:
			if i := slices.Index(levelNames[:], string(w.Name)); i >= 0 {
				named[i] = w.Value
			}
		}
	}

	form := formOf(v)
	integerRule, mapRule := powerInteger, powerMaps
	if form != integersOnly {
		integerRule, mapRule = powerUsers, powerUsers
	}
	p := &powerContent{}
	for i, token := range named {
		if token == nil || form != integersOnly && string(token) == "null" {
			continue
		}
		if p.named[i], p.present[i] = form.level(token); !p.present[i] {
			p.breaks(integerRule, levelNames[i]+" is not an integer")
		}
	}
	p.events = p.readEntries(form, mapRule, "events", events)
	notificationRule := mapRule
	if !v.NotificationLevels {
		notificationRule = noRule
	}
	p.notifications = p.readEntries(form, notificationRule, "notifications", notifications)
	p.users = p.readEntries(form, powerUsers, "users", users)
	for _, u := range p.users {
		if !validUserID(v, u.key) {
			p.breaks(powerUsers, "users has a key that is not a user ID")
		}
	}
	return p
}

// breaks notes that the content breaks a rule, if it is the first.
func (p *powerContent) breaks(r rule, reason string) {
	if p.fault == noRule {
		p.fault, p.faultReason = r, reason
	}
}

// readEntries reads an object of levels. Canonical JSON has each key once, but sorts keys by their
// escaped form.
func (p *powerContent) readEntries(form numberForm, r rule, name string, object []byte) entries {
	if object == nil {
		return nil
	}
	if object[0] != '{' {
		p.breaks(r, name+" is not an object")
		return nil
	}
	var es entries
	for w := canonicaljson.Walk(object); w.Next(); {
		level, ok := form.level(w.Value)
		if !ok {
			p.breaks(r, name+" has a value that is not an integer")
			continue
		}
		es = append(es, entry{nameOf(&w), level})
	}
	slices.SortFunc(es, func(a, b entry) int { return strings.Compare(a.key, b.key) })
	return es
}

// entry is a key of users, events or notifications and its level.
type entry struct {
	key   string
	level int64
}

// entries are sorted by key; each key is there once.
type entries []entry

func (es entries) get(key string) (level int64, ok bool) {
	// By hand, because slices.BinarySearchFunc calls its comparison through a pointer, and this
	// runs several times for every event.
	from, to := 0, len(es)
	for from < to {
		mid := int(uint(from+to) >> 1)
		if es[mid].key < key {
			from = mid + 1
		} else {
			to = mid
		}
	}
	if from < len(es) && es[from].key == key {
		return es[from].level, true
	}
	return 0, false
}
