package authrules

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/myelin-im/myelin/internal/canonicaljson"
	"github.com/myelin-im/myelin/internal/signing"
	"github.com/myelin-im/myelin/roomserver/pdu"
)

// world is the room of one case in one room version. It is the State that events are judged against.
type world struct {
	v      *pdu.Version
	roomID string
	state  map[StateKeyTuple]*pdu.Event
	events int // made so far
}

const foreignRoomID = "!BBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBB"

func newWorld(version int) *world {
	v, ok := pdu.Lookup(strconv.Itoa(version))
	if !ok {
		panic(fmt.Sprintf("no room version %d", version))
	}
	w := &world{v: v, roomID: "!room:one", state: map[StateKeyTuple]*pdu.Event{}}
	if v.RoomIDIsCreateHash {
		w.roomID = "!" + w.eventID("create", "")[1:]
	}
	return w
}

func (w *world) Event(eventType, stateKey string) (*pdu.Event, error) {
	return w.state[StateKeyTuple{eventType, stateKey}], nil
}

// build puts the events of a room and the changes of a case into the state.
func (w *world) build(r *room, changes []line) error {
	if r == nil {
		return errors.New("no room")
	}
	for base := r; base != nil; base = base.from {
		changes = slices.Concat(base.events, changes)
	}
	for _, l := range changes {
		if place, ok := strings.CutPrefix(l.text, "without "); ok {
			typ, key, _ := strings.Cut(place, " ")
			delete(w.state, StateKeyTuple{fullType(typ), key})
			continue
		}
		l.text = strings.TrimPrefix(l.text, "given ")
		ev, err := w.event(l, eventOptions{})
		if err != nil {
			return fmt.Errorf("%s: %w", l, err)
		}
		w.put(ev)
	}
	return nil
}

func (w *world) put(ev *pdu.Event) { w.state[StateKeyTuple{ev.Type, *ev.StateKey}] = ev }

// eventID invents an event ID of the version's form.
func (w *world) eventID(seed, server string) string {
	if w.v.EventFormat == 1 {
		return "$" + seed + ":" + server
	}
	hash := sha256.Sum256([]byte(seed))
	return "$" + base64.RawURLEncoding.EncodeToString(hash[:])
}

type eventOptions struct {
	after      []string // words of the line
	roomID     string
	authEvents []string
}

// event makes the event that a line describes.
func (w *world) event(l line, o eventOptions) (*pdu.Event, error) {
	d, err := w.describe(l.text)
	if err != nil {
		return nil, err
	}
	w.events++
	seed := "event" + strconv.Itoa(w.events)
	if d.typ == pdu.TypeCreate {
		seed = "create"
	}
	id := w.eventID(seed, pdu.ServerOf(d.sender))
	m := map[string]any{
		"type": d.typ, "sender": d.sender, "content": d.content, "depth": w.events, "origin_server_ts": 1,
		"hashes": map[string]any{"sha256": "AAAA"}, "signatures": map[string]any{}, "room_id": w.roomID,
		"auth_events": w.refs(o.authEvents), "prev_events": w.prevEvents(o.after),
	}
	if d.typ == pdu.TypeCreate && w.v.RoomIDIsCreateHash {
		delete(m, "room_id")
	}
	if o.roomID != "" {
		m["room_id"] = o.roomID
	}
	if d.stateKey != nil {
		m["state_key"] = *d.stateKey
	}
	if d.redacts != "" && !w.v.RedactsInContent {
		m["redacts"] = d.redacts
	}
	return w.make(m, id)
}

// make turns members into an event. The event is not hashed, signed or checked.
func (w *world) make(m map[string]any, id string) (*pdu.Event, error) {
	if w.v.EventFormat == 1 {
		m["event_id"] = id
	}
	raw, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	mode := canonicaljson.Lax
	if w.v.StrictJSON {
		mode = canonicaljson.Strict
	}
	if raw, err = canonicaljson.Canonical(raw, mode); err != nil {
		return nil, err
	}
	return pdu.FromStore(w.v, raw, id, false)
}

// copyOf changes members of an event and gives it another ID.
func (w *world) copyOf(ev *pdu.Event, change func(map[string]any)) *pdu.Event {
	var m map[string]any
	if err := json.Unmarshal(ev.JSON(), &m); err != nil {
		panic(err)
	}
	change(m)
	w.events++
	made, err := w.make(m, w.eventID("copy"+strconv.Itoa(w.events), ev.SenderServer()))
	if err != nil {
		panic(err)
	}
	return made
}

func (w *world) prevEvents(words []string) []any {
	var ids []string
	for _, word := range words {
		switch word {
		case "create":
			create := w.state[StateKeyTuple{pdu.TypeCreate, ""}]
			ids = append(ids, create.ID)
		case "other":
			ids = append(ids, w.eventID("other", "one"))
		}
	}
	if words == nil {
		ids = []string{w.eventID("other", "one")}
	}
	return w.refs(ids)
}

// refs cites events as the version does.
func (w *world) refs(ids []string) []any {
	refs := []any{}
	for _, id := range ids {
		if w.v.EventFormat == 1 {
			refs = append(refs, []any{id, map[string]string{"sha256": ""}})
		} else {
			refs = append(refs, id)
		}
	}
	return refs
}

// description is what a line says about an event.
type description struct {
	sender, typ, redacts string
	stateKey             *string
	content              members
}

type members = map[string]json.RawMessage

func fullType(name string) string {
	if strings.Contains(name, ".") {
		return name
	}
	return "m.room." + name
}

// describe reads "USER verb … {json}".
func (w *world) describe(text string) (*description, error) {
	head, merge, replace, err := splitJSON(text)
	if err != nil {
		return nil, err
	}
	words := strings.Fields(head)
	if len(words) < 2 {
		return nil, errors.New("not an event")
	}
	d := &description{sender: words[0], content: members{}}
	if err := w.verb(d, words[1], words[2:], merge); err != nil {
		return nil, err
	}
	if words[1] == "changes" {
		return d, nil
	}
	if replace {
		d.content = members{}
	}
	maps.Copy(d.content, merge)
	return d, nil
}

// splitJSON separates the object at the end of a line. replace says that it is the whole content.
func splitJSON(text string) (head string, object members, replace bool, err error) {
	head, tail, found := strings.Cut(text, " {")
	if found {
		if err := json.Unmarshal([]byte("{"+tail), &object); err != nil {
			return "", nil, false, err
		}
	}
	head, replace = strings.CutSuffix(head, " content")
	return head, object, replace, nil
}

func (w *world) verb(d *description, verb string, args []string, object members) error {
	arg := func(i int) string {
		if i < len(args) {
			return args[i]
		}
		return ""
	}
	switch verb {
	case "creates":
		d.state(pdu.TypeCreate, "")
		if !w.v.ImplicitCreator {
			d.set("creator", d.sender)
		}
	case "joins":
		d.member(MembershipJoin, arg(0))
	case "knocks":
		d.member(MembershipKnock, arg(0))
	case "leaves":
		d.member(MembershipLeave, "")
	case "kicks", "unbans":
		d.member(MembershipLeave, arg(0))
	case "bans":
		d.member(MembershipBan, arg(0))
	case "invites":
		d.member(MembershipInvite, arg(0))
		if arg(1) == "through" {
			return d.signInvite(arg(0), arg(2), args[3:])
		}
	case "offers":
		d.offer(arg(0), args[2:])
	case "sends":
		d.typ = fullType(arg(0))
	case "sets":
		typ, key, _ := strings.Cut(arg(0), "/")
		d.state(fullType(typ), key)
	case "redacts":
		d.typ, d.redacts = pdu.TypeRedaction, arg(0)
		if w.v.RedactsInContent {
			d.set("redacts", arg(0))
		}
	case "changes":
		return w.changePowerLevels(d, args[1:], object)
	default:
		return fmt.Errorf("unknown verb %q", verb)
	}
	return nil
}

func (d *description) state(typ, key string) { d.typ, d.stateKey = typ, &key }

func (d *description) member(membership, target string) {
	if target == "" {
		target = d.sender
	}
	d.state(pdu.TypeMember, target)
	d.set("membership", membership)
}

func (d *description) set(name string, value any) {
	raw, err := json.Marshal(value)
	if err != nil {
		panic(err)
	}
	d.content[name] = raw
}

// keyNamed makes the key pair that scripts call by a name.
func keyNamed(name string) ed25519.PrivateKey {
	seed := sha256.Sum256([]byte(name))
	return ed25519.NewKeyFromSeed(seed[:])
}

func encodeKey(key []byte) string { return base64.RawStdEncoding.EncodeToString(key) }

// offer is m.room.third_party_invite. The first key stands in public_key, all in public_keys.
func (d *description) offer(token string, keys []string) {
	d.state(pdu.TypeThirdPartyInvite, token)
	var list []map[string]string
	for _, name := range keys {
		encode := encodeKey
		if plain, ok := strings.CutPrefix(name, "urlsafe:"); ok {
			name, encode = plain, base64.RawURLEncoding.EncodeToString
		}
		list = append(list, map[string]string{"public_key": encode(keyNamed(name).Public().(ed25519.PublicKey))})
	}
	d.set("display_name", "someone")
	d.set("public_key", list[0]["public_key"])
	if len(list) > 1 {
		d.set("public_keys", list)
	}
}

// signInvite is content.third_party_invite, signed with the named keys.
func (d *description) signInvite(target, token string, words []string) error {
	signed := fmt.Appendf(nil, `{"mxid":%q,"token":%q}`, target, token)
	for i, name := range words {
		if i == 0 || name == "tampered" {
			continue
		}
		var err error
		if signed, err = signing.SignJSON(signed, "identity.example", "ed25519:"+name, keyNamed(name)); err != nil {
			return err
		}
	}
	if slices.Contains(words, "tampered") {
		signed = append(signed[:len(signed)-1], `,"extra":1}`...)
	}
	d.set("third_party_invite", map[string]any{"display_name": "someone", "signed": json.RawMessage(signed)})
	return nil
}

// changePowerLevels starts from the current power levels: "{…}" merges levels, "users {…}" merges
// entries, "remove ban" and "remove users @a:b" take out.
func (w *world) changePowerLevels(d *description, words []string, object members) error {
	d.state(pdu.TypePowerLevels, "")
	current := w.state[StateKeyTuple{pdu.TypePowerLevels, ""}]
	if err := json.Unmarshal(current.Content(), &d.content); err != nil {
		return err
	}
	if len(words) == 0 {
		maps.Copy(d.content, object)
		return nil
	}
	name, remove := words[0], false
	if name == "remove" {
		name, remove = words[1], true
		if len(words) == 2 {
			delete(d.content, name)
			return nil
		}
	}
	entries := members{}
	if raw := d.content[name]; raw != nil {
		if err := json.Unmarshal(raw, &entries); err != nil {
			return err
		}
	}
	if remove {
		delete(entries, words[2])
	} else {
		maps.Copy(entries, object)
	}
	d.set(name, entries)
	return nil
}
