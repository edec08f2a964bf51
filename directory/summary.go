package directory

import (
	"context"
	"slices"
	"unicode/utf8"

	"github.com/tidwall/gjson"

	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/roomserver/authrules"
	"github.com/myelin-im/myelin/roomserver/snapshot"
)

// published is what the directory shows of a room.
type published struct {
	RoomID        string `json:"room_id"`
	Name          string `json:"name,omitempty"`
	Topic         string `json:"topic,omitempty"`
	AvatarURL     string `json:"avatar_url,omitempty"`
	Alias         string `json:"canonical_alias,omitempty"`
	JoinRule      string `json:"join_rule,omitempty"` // empty: another server left it out, which means public
	RoomType      string `json:"room_type,omitempty"`
	Joined        int    `json:"num_joined_members"`
	WorldReadable bool   `json:"world_readable"`
	GuestsCanJoin bool   `json:"guest_can_join"`
}

// described is what hierarchies and summaries show of a room.
type described struct {
	published
	Allowed    []string `json:"allowed_room_ids,omitempty"`
	Encryption string   `json:"encryption,omitempty"`
	Version    string   `json:"room_version,omitempty"`
}

// summary is what the current state of a room says to those outside. It is immutable.
type summary struct {
	described
	root snapshot.Ref
	// allowed are the rooms whose members may join, and knockable and public tell how others may.
	allowed           []string
	public, knockable bool
}

func (s *summary) cost() int {
	n := 400 + len(s.RoomID) + len(s.Name) + len(s.Topic) + len(s.AvatarURL) + len(s.Alias) + len(s.JoinRule) + len(s.RoomType)
	for _, id := range s.allowed {
		n += 16 + len(id)
	}
	return n
}

func (s *summary) isSpace() bool { return s.RoomType == "m.space" }

const (
	// maxText bounds names and topics in summaries, in bytes; the room's own state has them in full.
	maxText = 4 << 10
	// maxAllowed bounds the rooms that a restricted room names.
	maxAllowed = 100
)

// summary returns what a room's current state says.
func (a *API) summary(ctx context.Context, room *roomserver.Room) (*summary, error) {
	root := room.Head().State
	if s, ok := a.summaries.Get(room.NID); ok && s.root == root {
		return s, nil
	}
	s := &summary{root: root}
	s.RoomID, s.Version = room.ID, room.Version.ID
	str := func(typ, member string) (string, error) {
		e, err := a.rooms.StateEvent(ctx, room, root, typ, "")
		if err != nil || e == nil {
			return "", err
		}
		return clip(gjson.GetBytes(e.Content(), member).Str), nil
	}
	var guests string
	for _, part := range []struct {
		into        *string
		typ, member string
	}{
		{&s.RoomType, "m.room.create", "type"},
		{&s.Name, "m.room.name", "name"},
		{&s.AvatarURL, "m.room.avatar", "url"},
		{&s.Alias, "m.room.canonical_alias", "alias"},
		{&s.Encryption, "m.room.encryption", "algorithm"},
		{&guests, "m.room.guest_access", "guest_access"},
	} {
		var err error
		if *part.into, err = str(part.typ, part.member); err != nil {
			return nil, err
		}
	}
	s.GuestsCanJoin = guests == "can_join"
	topic, err := a.rooms.StateEvent(ctx, room, root, "m.room.topic", "")
	if err != nil {
		return nil, err
	}
	if topic != nil {
		s.Topic = clip(plainTopic(topic.Content()))
	}
	visibility, err := a.rooms.HistoryVisibility(ctx, room, root)
	if err != nil {
		return nil, err
	}
	s.WorldReadable = visibility == roomserver.WorldReadable
	if err := a.joinRule(ctx, room, s); err != nil {
		return nil, err
	}
	a.summaries.Put(room.NID, s, s.cost())
	return s, nil
}

// joinRule reads who may join.
func (a *API) joinRule(ctx context.Context, room *roomserver.Room, s *summary) error {
	e, err := a.rooms.StateEvent(ctx, room, s.root, "m.room.join_rules", "")
	if err != nil {
		return err
	}
	rule := authrules.JoinRules(nil)
	if e != nil {
		rule = authrules.JoinRules(e.Event)
	}
	s.JoinRule = rule.Rule
	v := room.Version
	restricted := rule.Rule == authrules.JoinRuleRestricted && v.RestrictedJoins
	switch rule.Rule {
	case authrules.JoinRulePublic:
		s.public = true
	case authrules.JoinRuleKnock:
		s.knockable = v.KnockAllowed
	case authrules.JoinRuleKnockRestricted:
		restricted, s.knockable = v.KnockRestricted, v.KnockRestricted
	}
	if restricted {
		s.allowed = rule.Rooms[:min(len(rule.Rooms), maxAllowed)]
		s.Allowed = s.allowed
	}
	return nil
}

// plainTopic is the text/plain representation of an m.room.topic, else its older form.
func plainTopic(content []byte) string {
	for _, r := range gjson.GetBytes(content, "m\\.topic.m\\.text").Array() {
		if t := r.Get("mimetype"); !t.Exists() || t.Str == "text/plain" {
			if body := r.Get("body").Str; body != "" {
				return body
			}
		}
	}
	return gjson.GetBytes(content, "topic").Str
}

// clip shortens what is longer than maxText, between two characters.
func clip(s string) string {
	if len(s) <= maxText {
		return s
	}
	n := maxText
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}

// shows tells whether a user may see a room's summary: those who are in it or invited, those who may join or knock,
// and everyone if its history is world-readable. user is empty for someone unknown.
func (a *API) shows(ctx context.Context, room *roomserver.Room, s *summary, user string) (bool, error) {
	if s.WorldReadable {
		return true, nil
	}
	if user == "" {
		return s.public || s.knockable, nil
	}
	membership, err := a.rooms.MembershipAt(ctx, room, s.root, user)
	if err != nil {
		return false, err
	}
	switch membership {
	case roomserver.Join, roomserver.Invite, roomserver.Knock:
		return true, nil
	case roomserver.Ban:
		return false, nil
	}
	if s.public || s.knockable || len(s.allowed) == 0 {
		return s.public || s.knockable, nil
	}
	rooms, err := a.rooms.UserRooms(ctx, user)
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(rooms, func(r roomserver.UserRoom) bool {
		return r.Membership == roomserver.Join && slices.Contains(s.allowed, r.RoomID)
	}), nil
}
