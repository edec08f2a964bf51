package roomserver

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/tidwall/gjson"

	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/roomserver/pdu"
	"github.com/myelin-im/myelin/storage"
)

// Presets of createRoom (client-server API v1.19, "Creation").
const (
	PrivateChat        = "private_chat"
	TrustedPrivateChat = "trusted_private_chat"
	PublicChat         = "public_chat"
)

// StateDraft is one state event of a new room.
type StateDraft struct {
	Type     string          `json:"type"`
	StateKey string          `json:"state_key"`
	Content  json.RawMessage `json:"content"`
}

// NewRoom describes a room to create.
type NewRoom struct {
	// Creator is the local user who creates it; CreatorProfile are displayname and avatar_url
	// for the creator's membership event.
	Creator        string
	CreatorProfile map[string]any
	// Version is the room version.
	Version *pdu.Version
	// Preset is one of the presets.
	Preset string
	// CreationContent are further members of m.room.create.
	CreationContent map[string]json.RawMessage
	// PowerLevels override the default m.room.power_levels, member by member.
	PowerLevels map[string]json.RawMessage
	// InitialState overrides what the preset sets and is overridden by Name and Topic.
	InitialState []StateDraft
	// Name and Topic, where not empty, set the room's name and topic.
	Name, Topic string
	// Alias, if set, is the full room alias to make and to set as canonical.
	Alias string
	// Public lists the room in the directory.
	Public bool
	// Invite are the users to invite; InviteContent gives the rest of each one's content.
	Invite        []string
	InviteContent func(user string) map[string]any
	// Elsewhere are users of other servers whom the caller invites afterwards, since their servers have to sign. For the
	// preset they count like those in Invite.
	Elsewhere []string
}

// invited are all who will be invited.
func (n *NewRoom) invited() []string { return slices.Concat(n.Invite, n.Elsewhere) }

// CreateRoom creates a room with all its first events as one unit and returns its id.
func (s *Server) CreateRoom(ctx context.Context, n NewRoom) (string, error) {
	if n.Version.CreatorsPrivileged {
		n.trustInvited()
	}
	for {
		id, err := s.createRoom(ctx, n)
		// Another node of the cluster may have made the same room in the same millisecond.
		if !errors.Is(err, storage.ErrConflict) || ctx.Err() != nil {
			return id, err
		}
	}
}

func (s *Server) createRoom(ctx context.Context, n NewRoom) (string, error) {
	t, err := s.newRoom(ctx, &n)
	if err != nil {
		return "", err
	}
	if err := t.furnish(&n); err != nil {
		t.drop()
		return "", err
	}
	return t.found()
}

// found writes the first unit of a room that was made here and returns the room's id. Meanwhile nobody can load the room:
// who read it between the commit and its publication would make a second Room of it.
func (t *Turn) found() (string, error) {
	defer t.s.rooms.load.lock(t.room.ID)()
	wait, err := t.submit()
	if err != nil {
		return "", err
	}
	return t.room.ID, wait()
}

// trustInvited makes those invited with the preset trusted_private_chat creators, which is how room versions
// with privileged creators give them the creator's power.
func (n *NewRoom) trustInvited() {
	if n.Preset != TrustedPrivateChat || len(n.invited()) == 0 {
		return
	}
	var creators []string
	for _, u := range gjson.ParseBytes(n.CreationContent["additional_creators"]).Array() {
		creators = append(creators, u.Str)
	}
	for _, u := range n.invited() {
		if !slices.Contains(creators, u) {
			creators = append(creators, u)
		}
	}
	content := maps.Clone(n.CreationContent)
	if content == nil {
		content = map[string]json.RawMessage{}
	}
	content["additional_creators"], _ = json.Marshal(creators) // strings always marshal
	n.CreationContent = content
}

// newRoom makes a Room that nobody else knows yet and appends its m.room.create.
func (s *Server) newRoom(ctx context.Context, n *NewRoom) (*Turn, error) {
	content := maps.Clone(n.CreationContent)
	if content == nil {
		content = map[string]json.RawMessage{}
	}
	delete(content, "creator")
	content["room_version"], _ = json.Marshal(n.Version.ID) // strings always marshal
	if !n.Version.ImplicitCreator {
		content["creator"], _ = json.Marshal(n.Creator)
	}
	raw, err := json.Marshal(content)
	if err != nil {
		return nil, mxerr.BadJSON("creation_content cannot be encoded").With(err)
	}
	t, err := s.emptyRoom(ctx, n.Version)
	if err != nil {
		return nil, err
	}
	room := t.room
	if !n.Version.RoomIDIsCreateHash {
		room.ID = "!" + randomLocalpart() + ":" + s.name
	}
	empty := ""
	e, err := t.Append(Draft{Sender: n.Creator, Type: "m.room.create", StateKey: &empty, Content: raw, OriginServerTS: s.creationTime()})
	if err != nil {
		t.drop()
		return nil, err
	}
	room.ID = e.RoomID
	t.unit.Add(roomsTable, room.NID, room.ID, room.Version.ID, room.seed[:])
	return t, nil
}

// creationTime is the time of a new room, in milliseconds, and a different one for each: from version 12 on
// the id of a room is the hash of its first event, in which only the time may differ.
func (s *Server) creationTime() int64 {
	for {
		last := s.lastCreation.Load()
		ts := max(s.now().UnixMilli(), last+1)
		if s.lastCreation.CompareAndSwap(last, ts) {
			return ts
		}
	}
}

// randomLocalpart is the part of a room id before the colon.
func randomLocalpart() string {
	return rand.Text()[:18]
}

// furnish appends what follows m.room.create, in the order that the specification gives.
func (t *Turn) furnish(n *NewRoom) error {
	join := map[string]any{"membership": Join}
	maps.Copy(join, n.CreatorProfile)
	if err := t.appendState(n.Creator, "m.room.member", n.Creator, join); err != nil {
		return err
	}
	levels, err := n.powerLevels()
	if err != nil {
		return err
	}
	if err := t.appendState(n.Creator, "m.room.power_levels", "", levels); err != nil {
		return err
	}
	if n.Alias != "" {
		t.claimAlias(n.Alias, n.Creator)
		if err := t.appendState(n.Creator, "m.room.canonical_alias", "", map[string]any{"alias": n.Alias}); err != nil {
			return err
		}
	}
	for _, d := range n.state() {
		if _, err := t.sendOrKeep(Draft{Sender: n.Creator, Type: d.Type, StateKey: &d.StateKey, Content: d.Content}); err != nil {
			return fmt.Errorf("initial state %s: %w", d.Type, err)
		}
	}
	for _, user := range n.Invite {
		content := map[string]any{"membership": Invite}
		if n.InviteContent != nil {
			maps.Copy(content, n.InviteContent(user))
		}
		if err := t.appendState(n.Creator, "m.room.member", user, content); err != nil {
			return fmt.Errorf("invite %s: %w", user, err)
		}
	}
	if n.Public {
		t.publish()
	}
	return nil
}

func (t *Turn) appendState(sender, typ, key string, content any) error {
	raw, err := json.Marshal(content)
	if err != nil {
		return mxerr.BadJSON("The content of " + typ + " cannot be encoded").With(err)
	}
	_, err = t.Append(Draft{Sender: sender, Type: typ, StateKey: &key, Content: raw})
	return err
}

// powerLevels are the defaults of a new room with the client's overrides.
func (n *NewRoom) powerLevels() (map[string]json.RawMessage, error) {
	users := map[string]int{}
	if !n.Version.CreatorsPrivileged {
		users[n.Creator] = 100
		if n.Preset == TrustedPrivateChat {
			for _, u := range n.invited() {
				users[u] = 100
			}
		}
	}
	tombstone := 100
	if n.Version.CreatorsPrivileged {
		tombstone = 150
	}
	invite := 0
	if n.Preset == PublicChat {
		invite = 50
	}
	defaults := map[string]any{
		"ban": 50, "kick": 50, "redact": 50, "invite": invite, "state_default": 50, "events_default": 0, "users_default": 0,
		"users":         users,
		"notifications": map[string]int{"room": 50},
		"events": map[string]int{
			"m.room.name": 50, "m.room.avatar": 50, "m.room.canonical_alias": 50,
			"m.room.power_levels": 100, "m.room.history_visibility": 100, "m.room.server_acl": 100,
			"m.room.encryption": 100, "m.room.tombstone": tombstone,
		},
	}
	out := map[string]json.RawMessage{}
	for k, v := range defaults {
		raw, err := json.Marshal(v)
		if err != nil {
			return nil, fmt.Errorf("default power levels: %w", err)
		}
		out[k] = raw
	}
	maps.Copy(out, n.PowerLevels)
	return out, nil
}

// presetState is what each preset sets: join rule, history visibility, guest access. Where guests are forbidden, as they
// are without an event that says so, none is sent: servers and the field's conformance suite expect public rooms without.
var presetState = map[string][3]string{
	PrivateChat:        {Invite, Shared, "can_join"},
	TrustedPrivateChat: {Invite, Shared, "can_join"},
	PublicChat:         {"public", Shared, ""},
}

// state lists the state events after the power levels: the preset's, then those of the request, of which the
// later ones win; an event that initial_state names replaces the preset's and is not sent twice.
func (n *NewRoom) state() []StateDraft {
	p, ok := presetState[n.Preset]
	if !ok {
		p = presetState[PrivateChat]
	}
	drafts := []StateDraft{
		{Type: "m.room.join_rules", Content: json.RawMessage(`{"join_rule":"` + p[0] + `"}`)},
		{Type: "m.room.history_visibility", Content: json.RawMessage(`{"history_visibility":"` + p[1] + `"}`)},
	}
	if p[2] != "" {
		drafts = append(drafts, StateDraft{Type: "m.room.guest_access", Content: json.RawMessage(`{"guest_access":"` + p[2] + `"}`)})
	}
	set := func(d StateDraft) {
		i := slices.IndexFunc(drafts, func(o StateDraft) bool { return o.Type == d.Type && o.StateKey == d.StateKey })
		if i >= 0 {
			drafts[i] = d
		} else {
			drafts = append(drafts, d)
		}
	}
	for _, d := range n.InitialState {
		set(d)
	}
	if n.Name != "" {
		raw, _ := json.Marshal(map[string]string{"name": n.Name}) // strings always marshal
		set(StateDraft{Type: "m.room.name", Content: raw})
	}
	if n.Topic != "" {
		raw, _ := json.Marshal(map[string]any{ // strings always marshal
			"topic":   n.Topic,
			"m.topic": map[string]any{"m.text": []map[string]string{{"body": n.Topic}}},
		})
		set(StateDraft{Type: "m.room.topic", Content: raw})
	}
	return drafts
}
