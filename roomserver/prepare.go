package roomserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"

	"github.com/tidwall/gjson"

	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/roomserver/authrules"
	"github.com/myelin-im/myelin/roomserver/pdu"
)

// aside runs fn on the room's durable state, without taking the room's turn: what it builds cites nothing that a crash
// could erase, and nothing of it is written. It waits for what earlier turns have written.
func (s *Server) aside(ctx context.Context, roomID string, fn func(*Turn) error) error {
	t, err := s.settledTurn(ctx, roomID)
	if err != nil {
		return err
	}
	defer t.drop()
	return fn(t)
}

// settledTurn is settled for the room as it is in memory by then, at its durable head.
func (s *Server) settledTurn(ctx context.Context, roomID string) (*Turn, error) {
	for {
		room, err := s.Room(ctx, roomID)
		if err != nil {
			return nil, err
		}
		t, err := s.settled(ctx, room)
		if errors.Is(err, errEpoch) { // the room was dropped from memory a moment ago, or a write failed
			continue
		}
		if err != nil {
			return nil, err
		}
		t.head = room.durable.Load()
		return t, nil
	}
}

// settled begins a turn that will write nothing once what earlier turns have written is on disk.
func (s *Server) settled(ctx context.Context, room *Room) (*Turn, error) {
	t, err := s.begin(ctx, room)
	if err != nil {
		return nil, err
	}
	wait, err := t.settle()
	if err == nil {
		err = wait()
	}
	return t, err
}

// build makes and authorises an event on the turn's head, and does not keep it.
func (t *Turn) build(d *Draft) (*pdu.Event, *pdu.Proto, error) {
	parents, before, err := t.parents()
	if err != nil {
		return nil, nil, err
	}
	proto, _, err := t.proto(d, parents, before)
	if err != nil {
		return nil, nil, err
	}
	p, err := t.room.Version.Build(proto, t.s.name, t.s.keyID, t.s.key)
	if err != nil {
		return nil, nil, buildError(err)
	}
	if err := authrules.Check(p, authState{t, before}); err != nil {
		return nil, nil, authError(err)
	}
	return p, proto, nil
}

// PrepareMembership builds, authorises and signs the event of a change of membership as SetMembership does, but does not
// append it: another server has to sign it before it comes into the room by Take. The error is a *mxerr.Error where the user
// may not send it.
func (s *Server) PrepareMembership(ctx context.Context, m MembershipChange) (p *pdu.Event, err error) {
	if err = s.awaitTarget(ctx, &m); err != nil {
		return nil, err
	}
	err = s.aside(ctx, m.RoomID, func(t *Turn) error {
		if err := t.mayChange(&m); err != nil {
			return err
		}
		d, err := m.draft("")
		if err == nil {
			p, _, err = t.build(&d)
		}
		return err
	})
	return p, err
}

// mayChange applies MembershipChange.From.
func (t *Turn) mayChange(m *MembershipChange) error {
	current, err := t.Membership(m.Target)
	if err != nil {
		return err
	}
	return t.checkFrom(m, current)
}

// draft is the membership event; via, if not empty, authorises a join.
func (m *MembershipChange) draft(via string) (Draft, error) {
	content := map[string]any{}
	maps.Copy(content, m.Content)
	content["membership"] = m.Membership
	if via != "" {
		content["join_authorised_via_users_server"] = via
	}
	raw, err := json.Marshal(content)
	if err != nil {
		return Draft{}, fmt.Errorf("membership content: %w", err)
	}
	return Draft{Sender: m.Sender, Type: "m.room.member", StateKey: &m.Target, Content: raw, OriginServerTS: m.OriginServerTS}, nil
}

// Template builds an event with which a user of another server joins the room, leaves it or knocks on it. It is for that
// server to sign (server-server API v1.19, make_join, make_leave, make_knock). Only Membership, RoomID and Target of
// the change count.
func (s *Server) Template(ctx context.Context, m MembershipChange) (v *pdu.Version, event json.RawMessage, err error) {
	err = s.aside(ctx, m.RoomID, func(t *Turn) error {
		via := ""
		if m.Membership == Join {
			if via, err = t.authoriseRemote(m.Target); err != nil {
				return err
			}
		}
		d, err := (&MembershipChange{Sender: m.Target, Target: m.Target, Membership: m.Membership}).draft(via)
		if err != nil {
			return err
		}
		_, proto, err := t.build(&d)
		if err != nil {
			return err
		}
		v = t.room.Version
		event, err = v.Template(proto)
		return err
	})
	return v, event, err
}

// AuthoriseJoin tells whether a join of another server's user, which names a local user as the one who
// authorises it, fulfils the conditions of the join rule.
func (s *Server) AuthoriseJoin(ctx context.Context, roomID, user string) error {
	return s.aside(ctx, roomID, func(t *Turn) error {
		_, err := t.authoriseRemote(user)
		return err
	})
}

// authoriseRemote is authoriseRestricted for a user of another server, of whom only the rooms that this server shares are
// known (server-server API v1.19, "Restricted rooms"). Who is invited or joined needs no authorisation.
func (t *Turn) authoriseRemote(user string) (via string, err error) {
	current, err := t.Membership(user)
	if err != nil || current == Join || current == Invite {
		return "", err
	}
	rules, err := t.State("m.room.join_rules", "")
	if err != nil || rules == nil {
		return "", err
	}
	rule := contentString(rules, "join_rule")
	if rule != "restricted" && rule != "knock_restricted" || rule == "restricted" && !t.room.Version.RestrictedJoins ||
		rule == "knock_restricted" && !t.room.Version.KnockRestricted {
		return "", nil
	}
	if err := t.s.fulfils(t.ctx, rules, user); err != nil {
		return "", err
	}
	levels, err := t.Levels()
	if err != nil {
		return "", err
	}
	return t.inviter(levels)
}

// fulfils checks that a user of another server is in one of the rooms that a join rule allows. As long as the members of one
// of these are not known, it cannot be told that the user is in none.
func (s *Server) fulfils(ctx context.Context, rules *Event, user string) error {
	known, unknown, conditions := false, false, false
	for _, a := range gjson.GetBytes(rules.Content(), "allow").Array() {
		if a.Get("type").Str != "m.room_membership" {
			continue
		}
		conditions = true
		room, err := s.Room(ctx, a.Get("room_id").Str)
		if errors.Is(err, ErrUnknownRoom) {
			continue
		}
		if err != nil {
			return err
		}
		if !room.Resident() {
			continue
		}
		known = true
		m, err := s.MembershipAt(ctx, room, room.Head().State, user)
		if err != nil {
			return err
		}
		if m == Join {
			return nil
		}
		unknown = unknown || room.Partial() != nil
	}
	if conditions && (!known || unknown) {
		return mxerr.New(400, "M_UNABLE_TO_AUTHORISE_JOIN", "This server is in none of the rooms whose members may join, or does not know yet who they are")
	}
	return mxerr.Forbidden("The user is in none of the rooms whose members may join this one")
}

// Accept takes in one event that must become part of the timeline; anything else is 403 M_FORBIDDEN.
func (s *Server) Accept(ctx context.Context, roomID string, in Incoming) (e *Event, err error) {
	_, err = s.Turn(ctx, roomID, func(t *Turn) error {
		e, err = t.join(&in)
		return err
	})
	return e, err
}

// Complete makes an event of a local user of what another server's template says, signed by this server.
func (s *Server) Complete(v *pdu.Version, proto *pdu.Proto) (*pdu.Event, error) {
	p, err := v.Build(proto, s.name, s.keyID, s.key)
	if err != nil {
		return nil, fmt.Errorf("complete an event: %w", err)
	}
	return p, nil
}

// Sign adds this server's signature to an event of another server.
func (s *Server) Sign(p *pdu.Event) (*pdu.Event, error) {
	signed, err := p.Sign(s.name, s.keyID, s.key)
	if err != nil {
		return nil, fmt.Errorf("sign %s: %w", p.ID, err)
	}
	return signed, nil
}
