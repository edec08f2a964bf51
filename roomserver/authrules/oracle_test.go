//go:build goexperiment.jsonv2

package authrules

import (
	"crypto/ed25519"
	"encoding/json/v2"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/federation/eventauth"
	oracle "maunium.net/go/mautrix/federation/pdu"
	"maunium.net/go/mautrix/id"

	"github.com/myelin-im/myelin/roomserver/pdu"
)

// TestAgainstMautrix compares decisions on random events in random rooms with those of another
// implementation. A failure prints the room and the event as a script.
//
// mautrix knows room versions 3 to 12. It needs GOEXPERIMENT=jsonv2.
func TestAgainstMautrix(t *testing.T) {
	oracle.UseInternalMetaForGetEventID = true
	t.Cleanup(func() { oracle.UseInternalMetaForGetEventID = false })
	const cases = 500 // per room version
	excused := map[string]int{}
	agreed := map[string]int{}
	for version := 3; version <= newestList; version++ {
		for n := range cases {
			seed := uint64(version)<<32 | uint64(n)
			c := &randomCase{Rand: rand.New(rand.NewPCG(seed, 0)), version: version}
			c.generate()
			result := c.compare(t)
			switch {
			case result.excuse != "":
				excused[result.excuse]++
			case result.differs:
				t.Errorf("seed %d: ours: %v; theirs: %v; panic: %v\n%s", seed, result.ours, result.theirs, result.panicked, c)
			default:
				agreed[map[bool]string{true: "allowed", false: "rejected"}[result.ours == nil]]++
			}
			if t.Failed() {
				return
			}
		}
	}
	t.Logf("agreed: %v; excused: %v", agreed, excused)
	if agreed["allowed"] < cases || agreed["rejected"] < cases {
		t.Errorf("the cases are one-sided: %v", agreed)
	}
}

// oracleKey signs for all servers.
var oracleKey = keyNamed("oracle")

type comparison struct {
	ours, theirs error
	panicked     any
	differs      bool
	excuse       string // a known defect of mautrix that explains the difference
}

func (c *randomCase) compare(t *testing.T) (result comparison) {
	t.Helper()
	w := worldOf(t, c.version, c.room...)
	ev, err := w.event(line{text: c.event}, eventOptions{after: c.after})
	if err != nil {
		t.Fatalf("%v\n%s", err, c)
	}
	// mautrix verifies the authoriser's signature in the same place; ours is checked elsewhere.
	if user, _ := ev.AuthorisedVia(); pdu.ValidUserID(user) {
		if ev, err = ev.Sign(pdu.ServerOf(user), "ed25519:oracle", oracleKey); err != nil {
			t.Fatal(err)
		}
	}
	r, err := decide(ev, w)
	result.ours = err
	result.theirs, result.panicked = c.theirs(t, w, ev)
	result.differs = result.panicked != nil || (result.ours == nil) != (result.theirs == nil)
	if result.differs {
		result.excuse = c.excuse(ev, r, result)
	}
	return result
}

// excuse names the known defect of mautrix v0.31.0 behind a difference, if there is one.
func (c *randomCase) excuse(ev *pdu.Event, r rule, result comparison) string {
	message := fmt.Sprint(result.theirs)
	switch {
	case result.panicked != nil && r == powerOldUser:
		// It looks up the new level of a user who was removed by someone of the same level.
		return "panics when a user of the sender's own level is removed"
	case errors.Is(result.theirs, eventauth.ErrFailedToParsePowerLevels) && strings.Contains(message, "m.federate"):
		return "cannot read an m.federate that is no boolean"
	case errors.Is(result.theirs, eventauth.ErrThirdPartyInviteNotSigned) && r == thirdPartySignature:
		// It looks for the public keys in the invite instead of the offer.
		return "rejects valid third-party invites"
	case ev.Type == pdu.TypeAliases && c.version <= 5:
		return "lacks the rule on aliases"
	case c.version <= 5 && result.ours == nil && strings.Contains(message, "can't change notifications."):
		return "guards notifications before version 6"
	case c.version <= 9 && r == powerUsers && result.theirs == nil:
		// Booleans count as numbers, other unreadable levels as absent, and a server
		// name may be anything. The first is how Python reads them, the second a
		// choice; see parsePower.
		return "takes power levels that are no numbers"
	case r == powerUsers && strings.Contains(result.ours.Error(), "not a user ID") && result.theirs == nil:
		return "takes any text for a server name in user IDs"
	}
	return ""
}

// theirs asks mautrix, with the events that the selection names as the state.
func (c *randomCase) theirs(t *testing.T, w *world, ev *pdu.Event) (err error, panicked any) {
	t.Helper()
	defer func() { panicked = recover() }()
	version := id.RoomVersion(w.v.ID)
	target := translate(t, ev)
	selected := []*oracle.PDU{}
	for _, k := range target.AuthEventSelection(version) {
		if a := w.state[StateKeyTuple{k.Type, k.StateKey}]; a != nil {
			selected = append(selected, translate(t, a))
		}
	}
	getEvents := func([]id.EventID) ([]*oracle.PDU, error) {
		return []*oracle.PDU{translate(t, w.state[StateKeyTuple{pdu.TypeCreate, ""}])}, nil
	}
	getKey := func(string, id.KeyID, time.Time) (id.SigningKey, time.Time, error) {
		key := oracleKey.Public().(ed25519.PublicKey)
		return id.SigningKey(encodeKey(key)), time.Now().Add(time.Hour), nil
	}
	return eventauth.Authorize(version, target, selected, getEvents, getKey), nil
}

func translate(t *testing.T, ev *pdu.Event) *oracle.PDU {
	t.Helper()
	p := &oracle.PDU{}
	if err := json.Unmarshal(ev.JSON(), p); err != nil {
		t.Fatal(err)
	}
	p.InternalMeta.EventID = id.EventID(ev.ID)
	return p
}

// randomCase is a room and an event as lines of a script.
type randomCase struct {
	*rand.Rand
	version int
	room    []string
	event   string
	after   []string
	power   string // content of the room's power levels, or empty
}

func (c *randomCase) String() string {
	return fmt.Sprintf("version %d\n  %s\nwhen %s\nafter %v", c.version, strings.Join(c.room, "\n  "), c.event, c.after)
}

func pick[T any](c *randomCase, list ...T) T { return list[c.IntN(len(list))] }

// oneIn is true in one of n cases.
func (c *randomCase) oneIn(n int) bool { return c.IntN(n) == 0 }

var randomUsers = []string{"@creator:one", "@extra:two", "@admin:one", "@mod:one", "@mod:two", "@user:one", "@new:two"}

func (c *randomCase) user() string { return pick(c, randomUsers...) }

func (c *randomCase) generate() {
	// In versions up to 10 mautrix takes the sender for the creator of a room without power
	// levels; so the creator is always the sender here.
	create := fmt.Sprintf(`"room_version": "%d"`, c.version)
	if c.oneIn(10) {
		create += `, "m.federate": ` + pick(c, "false", "true", `"false"`)
	}
	if c.oneIn(2) {
		create += `, "additional_creators": ["@extra:two"]`
	}
	c.room = []string{"@creator:one creates {" + create + "}"}
	for _, user := range randomUsers {
		switch c.IntN(12) {
		case 0: // none
		case 1:
			c.room = append(c.room, user+" leaves")
		case 2:
			c.room = append(c.room, "@x:one bans "+user)
		case 3:
			c.room = append(c.room, "@x:one invites "+user)
		case 4:
			c.room = append(c.room, user+" knocks")
		default:
			c.room = append(c.room, user+" joins")
		}
	}
	if !c.oneIn(6) {
		c.power = c.powerContent(false)
		c.room = append(c.room, "@creator:one sets power_levels content {"+c.power+"}")
	}
	if !c.oneIn(8) {
		rule := pick(c, `"public"`, `"invite"`, `"knock"`, `"restricted"`, `"knock_restricted"`, `"private"`)
		c.room = append(c.room, `@creator:one sets join_rules {"join_rule": `+rule+`}`)
	}
	c.room = append(c.room, c.user()+" offers token with "+pick(c, "key1", "key1 key2"))
	c.event = c.randomEvent()
	c.after = pick(c, []string{"other"}, []string{"create"}, []string{"create", "other"}, []string{"other"})
}

func (c *randomCase) randomEvent() string {
	sender, other := c.user(), c.user()
	if c.oneIn(20) {
		sender = "@stranger:two"
	}
	switch c.IntN(16) {
	case 0:
		return sender + " sends " + pick(c, "m.room.message", "topic", "org.example", "redaction", "aliases", "power_levels")
	case 1:
		return sender + " sets " + pick(c, "topic", "org.example", "tombstone", "aliases/one", "org.example/"+other, "org.example/@", "join_rules")
	case 2:
		return sender + " offers other with key1"
	case 3:
		return sender + " leaves"
	case 4:
		return sender + " kicks " + other
	case 5:
		return sender + " bans " + other
	case 6:
		return sender + " invites " + other
	case 7:
		return sender + " invites " + other + " through " + pick(c, "token", "token", "none") + " signed " + pick(c, "key1", "key2", "key3", "key1 tampered")
	case 8:
		return sender + " invites " + other + ` {"third_party_invite": ` + pick(c, `{}`, `{"signed": {}}`, `{"signed": {"mxid": "@a:b", "token": "token"}}`) + `}`
	case 9:
		return pick(c, sender+" knocks", sender+" knocks "+other)
	case 10:
		return sender + ` sets member/` + other + pick(c, ` {}`, ` {"membership": "what"}`, ` {"membership": 1}`)
	case 11, 12:
		line := pick(c, sender+" joins", sender+" joins", sender+" joins", sender+" joins "+other)
		if c.oneIn(2) {
			line += ` {"join_authorised_via_users_server": "` + other + `"}`
		}
		return line
	default:
		if c.power != "" && c.oneIn(2) {
			return c.smallChange(sender)
		}
		return sender + " sets power_levels content {" + c.powerContent(true) + "}"
	}
}

// smallChange changes a few things of the current power levels.
func (c *randomCase) smallChange(sender string) string {
	switch c.IntN(5) {
	case 0:
		return fmt.Sprintf(`%s changes power_levels {"%s": %s}`, sender, pick(c, levelNames[:]...), c.level(false))
	case 1:
		return sender + " changes power_levels remove " + pick(c, append(levelNames[:], "users", "events", "notifications")...)
	case 2:
		return fmt.Sprintf(`%s changes power_levels users {"%s": %s}`, sender, c.user(), c.level(false))
	case 3:
		return sender + " changes power_levels remove users " + c.user()
	}
	return fmt.Sprintf(`%s changes power_levels %s {"%s": %s}`, sender, pick(c, "events", "notifications"), pick(c, "m.room.message", "m.room.name", "room"), c.level(false))
}

// level is a power level in one of the ways to write it.
func (c *randomCase) level(malformed bool) string {
	n := pick(c, -1, 0, 0, 10, 49, 50, 50, 51, 100, 100)
	if malformed && c.oneIn(40) {
		return pick(c, `"x"`, `true`, `null`, `[]`, `{}`, `""`)
	}
	switch {
	case c.version <= 9 && c.oneIn(10):
		return fmt.Sprintf(pick(c, `"%d"`, `" %d "`, `"\t%d\n"`), n)
	case c.version <= 5 && c.oneIn(10):
		return fmt.Sprintf(pick(c, `%d.0`, `%d.5`), n)
	}
	return fmt.Sprint(n)
}

// powerContent is what stands within the braces of power levels.
func (c *randomCase) powerContent(malformed bool) string {
	var parts []string
	for _, name := range levelNames {
		if c.oneIn(4) {
			parts = append(parts, `"`+name+`": `+c.level(malformed))
		}
	}
	for _, object := range [][]string{
		append([]string{"users"}, randomUsers...),
		{"events", "m.room.message", "m.room.power_levels", "m.room.topic", "org.example", "m.room.redaction"},
		{"notifications", "room", "other"},
	} {
		name, keys := object[0], object[1:]
		if malformed && c.oneIn(60) {
			parts = append(parts, `"`+name+`": `+pick(c, `null`, `[]`, `5`))
			continue
		}
		var entries []string
		for _, key := range keys {
			if name == "users" && c.version >= 12 && (key == "@creator:one" || key == "@extra:two") && !(malformed && c.oneIn(10)) {
				continue
			}
			if c.oneIn(2) {
				entries = append(entries, `"`+key+`": `+c.level(malformed))
			}
		}
		if malformed && name == "users" && c.oneIn(30) {
			entries = append(entries, pick(c, `"": 0`, `"user": 0`, `"@user": 0`, `"@us er:one": 0`, `"@user:o_ne": 0`))
		}
		parts = append(parts, `"`+name+`": {`+strings.Join(entries, ", ")+`}`)
	}
	return strings.Join(parts, ", ")
}
