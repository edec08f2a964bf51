package pdu

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/myelin-im/myelin/internal/canonicaljson"
	"github.com/myelin-im/myelin/internal/signing"
)

// Proto is what a new event is built from.
type Proto struct {
	RoomID   string // "" for the create event of a version 12 room
	Sender   string
	Type     string
	StateKey *string
	Content  json.RawMessage // any JSON object
	// Redacts is the event that an m.room.redaction redacts. It is written where
	// the room version has it.
	Redacts        string
	PrevEvents     []Ref
	AuthEvents     []Ref
	Depth          int64
	OriginServerTS int64
	// StickyMS is how long the event is sticky, in milliseconds, 0 to MaxStickyMS; nil for one that is not (MSC4354).
	StickyMS *int64
}

// Build makes, hashes and signs an event of a local user. keyID is the whole key
// identifier ("ed25519:a_b"). The error wraps ErrTooLarge, ErrBadJSON or
// ErrFormat.
func (v *Version) Build(p *Proto, serverName, keyID string, key ed25519.PrivateKey) (*Event, error) {
	content, err := v.content(p)
	if err != nil {
		return nil, err
	}
	if err := v.check(p); err != nil {
		return nil, err
	}
	var id string
	if v.EventFormat == 1 {
		id = randomEventID(serverName)
	}
	buf := getBuffer()
	defer buf.put()
	signed := getBuffer()
	defer signed.put()

	// The content hash covers everything but itself and the signatures.
	signed.b = v.appendProto(signed.b, p, id, content, nil, nil)
	hash := sha256.Sum256(signed.b)
	hashes := appendHashes(make([]byte, 0, 64), hash[:])
	buf.b = v.appendProto(buf.b, p, id, content, hashes, nil)
	signed.b = appendRedacted(signed.b[:0], v, p.Type, buf.b, false)
	signatures := make([]byte, 0, 128+len(serverName)+len(keyID))
	signatures = appendSignatures(signatures, serverName, keyID, signing.Bytes(signed.b, key))
	own := v.appendProto(make([]byte, 0, len(buf.b)+len(signatures)+16), p, id, content, hashes, signatures)
	if len(own) > MaxSize {
		return nil, fmt.Errorf("%w: %d bytes", ErrTooLarge, len(own))
	}

	f := split(own)
	e, err := decode(v, own, &f)
	if err != nil {
		return nil, err
	}
	if e.ID = id; v.EventFormat != 1 {
		e.ID = eventID(v, signed.b)
		e.deriveRoomID()
	}
	if err := e.check(&f); err != nil {
		return nil, err
	}
	if e.Oversized() {
		return nil, fmt.Errorf("%w: a field has more than %d bytes", ErrTooLarge, MaxFieldSize)
	}
	return e, nil
}

// content returns the canonical content of the event to be.
func (v *Version) content(p *Proto) ([]byte, error) {
	content, err := canonicaljson.Canonical(p.Content, v.jsonMode())
	if err != nil {
		return nil, fmt.Errorf("%w: content: %w", ErrBadJSON, err)
	}
	if content[0] != '{' {
		return nil, fmt.Errorf("%w: content is no object", ErrFormat)
	}
	if p.Redacts != "" && v.RedactsInContent {
		content = appendWithRedacts(nil, content, p.Redacts)
	}
	return content, nil
}

// check refuses text that would have to be altered to be written as JSON,
// numbers that canonical JSON does not have, and state that nobody could own.
func (v *Version) check(p *Proto) error {
	if v.StrictJSON && (max(p.Depth, p.OriginServerTS) > MaxDepth || min(p.Depth, p.OriginServerTS) < -MaxDepth) {
		return fmt.Errorf("%w: depth or origin_server_ts beyond ±(2^53-1)", ErrBadJSON)
	}
	if p.StickyMS != nil && (*p.StickyMS < 0 || *p.StickyMS > MaxStickyMS) {
		return fmt.Errorf("%w: sticky for %d ms", ErrFormat, *p.StickyMS)
	}
	if k := p.StateKey; v.OwnedState && k != nil && strings.HasPrefix(*k, "@") && StateKeyOwner(*k) == "" {
		return fmt.Errorf("%w: the state key begins like a user ID and is none", ErrFormat)
	}
	ok := utf8.ValidString(p.RoomID) && utf8.ValidString(p.Sender) && utf8.ValidString(p.Type) &&
		utf8.ValidString(p.Redacts) && (p.StateKey == nil || utf8.ValidString(*p.StateKey))
	for _, refs := range [...][]Ref{p.PrevEvents, p.AuthEvents} {
		for _, r := range refs {
			ok = ok && utf8.ValidString(r.ID) && utf8.ValidString(r.SHA256)
		}
	}
	if !ok {
		return fmt.Errorf("%w: text that is not UTF-8", ErrBadJSON)
	}
	return nil
}

// appendProto writes the canonical event, without hashes or signatures where
// they are nil. The members stand in their canonical order.
func (v *Version) appendProto(dst []byte, p *Proto, id string, content, hashes, signatures []byte) []byte {
	dst = v.appendRefs(append(dst, `{"auth_events":`...), p.AuthEvents)
	dst = append(append(dst, `,"content":`...), content...)
	dst = strconv.AppendInt(append(dst, `,"depth":`...), p.Depth, 10)
	if v.EventFormat == 1 {
		dst = canonicaljson.AppendString(append(dst, `,"event_id":`...), id)
	}
	if hashes != nil {
		dst = append(append(dst, `,"hashes":`...), hashes...)
	}
	if p.StickyMS != nil {
		dst = appendSticky(dst, *p.StickyMS)
	}
	dst = strconv.AppendInt(append(dst, `,"origin_server_ts":`...), p.OriginServerTS, 10)
	dst = v.appendRefs(append(dst, `,"prev_events":`...), p.PrevEvents)
	if p.Redacts != "" && !v.RedactsInContent {
		dst = canonicaljson.AppendString(append(dst, `,"redacts":`...), p.Redacts)
	}
	if p.RoomID != "" {
		dst = canonicaljson.AppendString(append(dst, `,"room_id":`...), p.RoomID)
	}
	dst = canonicaljson.AppendString(append(dst, `,"sender":`...), p.Sender)
	if signatures != nil {
		dst = append(append(dst, `,"signatures":`...), signatures...)
	}
	if p.StateKey != nil {
		dst = canonicaljson.AppendString(append(dst, `,"state_key":`...), *p.StateKey)
	}
	dst = canonicaljson.AppendString(append(dst, `,"type":`...), p.Type)
	return append(dst, '}')
}

func (v *Version) appendRefs(dst []byte, refs []Ref) []byte {
	dst = append(dst, '[')
	for i, r := range refs {
		if i > 0 {
			dst = append(dst, ',')
		}
		if v.EventFormat != 1 {
			dst = canonicaljson.AppendString(dst, r.ID)
			continue
		}
		dst = canonicaljson.AppendString(append(dst, '['), r.ID)
		dst = canonicaljson.AppendString(append(dst, `,{"sha256":`...), r.SHA256)
		dst = append(dst, '}', ']')
	}
	return append(dst, ']')
}

func appendHashes(dst, hash []byte) []byte {
	dst = append(dst, `{"sha256":"`...)
	dst = base64.RawStdEncoding.AppendEncode(dst, hash)
	return append(dst, `"}`...)
}

func appendSignatures(dst []byte, server, keyID string, signature []byte) []byte {
	dst = canonicaljson.AppendString(append(dst, '{'), server)
	dst = canonicaljson.AppendString(append(dst, ':', '{'), keyID)
	dst = append(dst, ':', '"')
	dst = base64.RawStdEncoding.AppendEncode(dst, signature)
	return append(dst, `"}}`...)
}

// randomEventID chooses the ID of an event of version 1 or 2.
func randomEventID(serverName string) string {
	var b [18]byte
	rand.Read(b[:]) // never fails
	return "$" + base64.RawURLEncoding.EncodeToString(b[:]) + ":" + serverName
}

// Template renders an event that another server is to complete, hash and sign:
// the answers of make_join, make_knock and make_leave. Sender's server fills in
// origin_server_ts anew.
func (v *Version) Template(p *Proto) ([]byte, error) {
	content, err := v.content(p)
	if err != nil {
		return nil, err
	}
	if err := v.check(p); err != nil {
		return nil, err
	}
	return v.appendTemplate(p, content), nil
}

func (v *Version) appendTemplate(p *Proto, content []byte) []byte {
	own := v.appendProto(nil, p, "", content, nil, nil)
	if v.EventFormat == 1 {
		own = appendWithout(nil, own, "event_id")
	}
	return own
}

// ParseTemplate reads a template that another server made. Only its syntax and
// types are checked: the caller compares room, sender, type, state key and
// membership with what it asked for. The error wraps ErrTooLarge, ErrBadJSON or
// ErrFormat.
func ParseTemplate(v *Version, raw []byte) (*Proto, error) {
	if len(raw) > maxRawSize {
		return nil, fmt.Errorf("%w: template of %d bytes", ErrTooLarge, len(raw))
	}
	canon, err := canonicaljson.Canonical(raw, v.jsonMode())
	if err != nil {
		return nil, fmt.Errorf("%w: template: %w", ErrBadJSON, err)
	}
	f := split(canon)
	if f.originServerTS == nil {
		f.originServerTS = []byte("0")
	}
	if f.depth == nil {
		f.depth = []byte("0")
	}
	e, err := decode(v, canon, &f)
	if err != nil {
		return nil, fmt.Errorf("template: %w", err)
	}
	p := &Proto{
		RoomID: e.RoomID, Sender: e.Sender, Type: e.Type, Content: e.content, Redacts: e.Redacts(),
		PrevEvents: refs(v, f.prevEvents), AuthEvents: refs(v, f.authEvents),
		Depth: e.Depth, OriginServerTS: e.OriginServerTS,
	}
	if e.IsState() {
		p.StateKey = e.StateKey
	}
	return p, nil
}

// refs reads citations whose form decode has checked.
func refs(v *Version, array []byte) []Ref {
	var list []Ref
	for w := canonicaljson.Walk(array); w.Next(); {
		var r Ref
		if r.ID, _ = refID(v, w.Value); v.EventFormat == 1 {
			item := canonicaljson.Walk(w.Value)
			item.Next()
			item.Next()
			r.SHA256, _ = text(canonicaljson.Member(item.Value, "sha256"))
		}
		list = append(list, r)
	}
	return list
}
