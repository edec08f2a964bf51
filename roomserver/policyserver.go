package roomserver

import (
	"bytes"
	"context"
	"crypto/ed25519"

	"github.com/tidwall/gjson"

	"github.com/myelin-im/myelin/internal/canonicaljson"
	"github.com/myelin-im/myelin/internal/signing"
	"github.com/myelin-im/myelin/roomserver/pdu"
)

// PolicyServer is the server that a room asks what it thinks of events.
type PolicyServer struct {
	// Name is its server name, Key what it signs with.
	Name string
	Key  ed25519.PublicKey
}

// Exempt tells whether an event needs no signature of a policy server: the one that names it.
func (p *PolicyServer) Exempt(e *pdu.Event) bool { return e.Is("m.room.policy", "") }

// policyServerOf reads an m.room.policy event; nil if it names no policy server.
func policyServerOf(e *pdu.Event) any {
	content := gjson.ParseBytes(e.Content())
	via, key := content.Get("via"), content.Get("public_keys").Get("ed25519")
	raw, err := signing.DecodeBase64(key.Str)
	if via.Type != gjson.String || key.Type != gjson.String || err != nil || len(raw) != ed25519.PublicKeySize {
		return (*PolicyServer)(nil)
	}
	return &PolicyServer{via.Str, ed25519.PublicKey(raw)}
}

// PolicyServer returns the policy server of a room by its current state, or nil: it must have a user in the room.
//
// spec: server-server-api v1.19 "Determining if a Policy Server is enabled in a room"
func (s *Server) PolicyServer(ctx context.Context, room *Room) (*PolicyServer, error) {
	e, err := s.StateEvent(ctx, room, room.Head().State, "m.room.policy", "")
	if err != nil || e == nil {
		return nil, err
	}
	p := e.Cached(policyServerOf).(*PolicyServer)
	if p == nil || !room.HasServer(p.Name) {
		return nil, nil
	}
	return p, nil
}

// Recommend gets the signature of a room's policy server for an event of a local user, and returns the event with it. An
// error is the answer to the user.
type Recommend func(ctx context.Context, room *Room, p *pdu.Event) (*pdu.Event, error)

// SetRecommend tells whom to ask for such signatures. It must be called before the first event is sent.
func (s *Server) SetRecommend(fn Recommend) { s.recommend = fn }

// policed tells whether events of a room need the signature of a policy server before they are sent.
func (s *Server) policed(ctx context.Context, roomID string) (bool, error) {
	if s.recommend == nil {
		return false, nil
	}
	room, err := s.Room(ctx, roomID)
	if err != nil {
		return false, err
	}
	p, err := s.PolicyServer(ctx, room)
	return p != nil && p.Name != s.name, err
}

// sendPoliced sends an event that is built aside, since the network has no place in a turn. Where prepare returns an
// event that stands already, nothing is sent.
func (s *Server) sendPoliced(ctx context.Context, roomID string, d *Draft, prepare func(t *Turn) (*pdu.Event, *Event, error)) (*Event, error) {
	var p *pdu.Event
	var old *Event
	err := s.aside(ctx, roomID, func(t *Turn) (err error) {
		p, old, err = prepare(t)
		return err
	})
	if err != nil || old != nil {
		return old, err
	}
	room, err := s.Room(ctx, roomID)
	if err != nil {
		return nil, err
	}
	if p, err = s.recommend(ctx, room, p); err != nil {
		return nil, err
	}
	return s.Accept(ctx, roomID, Incoming{Event: p, Draft: d})
}

// prepareDraft builds an event of a local user, with all the checks of sendOrKeep.
func (t *Turn) prepareDraft(d *Draft) (*pdu.Event, *Event, error) {
	if d.StateKey != nil {
		old, err := t.State(d.Type, *d.StateKey)
		if err != nil {
			return nil, nil, err
		}
		if old.repeats(d) {
			return nil, old, nil
		}
	}
	p, _, err := t.build(d)
	if err != nil {
		return nil, nil, err
	}
	if err := t.checkRelation(p); err != nil {
		return nil, nil, err
	}
	if d.Redacts != "" && d.Type == "m.room.redaction" {
		return p, nil, t.redactLocal(&Event{Event: p}, d.Redacts)
	}
	return p, nil, nil
}

// repeats tells whether a draft would say again what the state event (which may be nil) says.
func (e *Event) repeats(d *Draft) bool {
	if e == nil || e.Sender != d.Sender {
		return false
	}
	content, err := canonicaljson.Canonical(d.Content, canonicaljson.Lax)
	return err == nil && bytes.Equal(content, e.Content())
}
