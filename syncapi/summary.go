package syncapi

import (
	"context"
	"encoding/json"
	"strings"

	"github.com/myelin-im/myelin/roomserver/snapshot"
)

// What names a room, beside its heroes.
const (
	nameType           = "m.room.name"
	canonicalAliasType = "m.room.canonical_alias"
)

// summary is what a client needs to show a room of whose members it does not know all.
//
// Spec: client-server API v1.19, GET /sync, "RoomSummary".
type summary struct {
	Joined  int `json:"m.joined_member_count"`
	Invited int `json:"m.invited_member_count"`
	// Heroes are the users after whom a room without a name is called; nil of one that has a name.
	Heroes *[]string `json:"m.heroes,omitempty"`
}

// summarise makes the summary, if the client has to be told one: the room is new to it, memberships changed, or the room
// has lost the name in whose presence nobody was told the heroes.
func (p *roomPart) summarise(ctx context.Context, end snapshot.Ref) error {
	if !p.summarised || !p.fresh && !p.members && !p.renamed {
		return nil
	}
	named, err := p.named(ctx, end)
	if err != nil || named && !p.fresh && !p.members {
		return err
	}
	rooms, s := p.look.api.rooms, &summary{}
	if s.Joined, s.Invited, err = rooms.MemberCountsAt(ctx, p.room, end); err != nil {
		return err
	}
	if !named {
		heroes, err := rooms.Heroes(ctx, p.room, p.look.user)
		if err != nil {
			return err
		}
		s.Heroes = &heroes
	}
	p.summary = s
	return nil
}

// compareSizes finds out whether the number of members changed, of which clients are told also where they want nothing else
// of the change.
func (p *roomPart) compareSizes(ctx context.Context, begin snapshot.Ref) error {
	if p.summary == nil || !p.empty() {
		return nil
	}
	joined, invited, err := p.look.api.rooms.MemberCountsAt(ctx, p.room, begin)
	p.resized = joined != p.summary.Joined || invited != p.summary.Invited
	return err
}

// heroes are the users named in the summary.
func (p *roomPart) heroes() []string {
	if p.summary == nil || p.summary.Heroes == nil {
		return nil
	}
	return *p.summary.Heroes
}

// appendSummary appends the room summary, if there is one.
func (p *roomPart) appendSummary(b []byte) ([]byte, error) {
	if p.summary == nil {
		return b, nil
	}
	raw, err := json.Marshal(p.summary)
	if err != nil {
		return nil, err
	}
	return append(append(b, `,"summary":`...), raw...), nil
}

// named tells whether the room has a name or an alias to show, so that nobody need be named as hero.
func (p *roomPart) named(ctx context.Context, root snapshot.Ref) (bool, error) {
	for _, k := range [][2]string{{nameType, "name"}, {canonicalAliasType, "alias"}} {
		e, err := p.look.api.rooms.StateEvent(ctx, p.room, root, k[0], "")
		if err != nil {
			return false, err
		}
		if e != nil {
			if v, _ := e.ContentString(k[1]); strings.TrimSpace(v) != "" {
				return true, nil
			}
		}
	}
	return false, nil
}
