package syncapi

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/myelin-im/myelin/accounts"
	"github.com/myelin-im/myelin/internal/canonicaljson"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/storage"
)

// people are the users of whose profiles an answer tells beside what changed: those whom the client gets to know with it,
// and those who have left a room. New users of other servers come with a membership event, which is what is known of
// their names and avatars; local ones with nil.
type people struct {
	new  map[string]*roomserver.Event
	gone map[string]bool
}

// maxNewPeople bounds the whole profiles of one answer. Clients ask for others when they show them.
const maxNewPeople = 1000

// note takes notice of a membership event that the client is sent.
func (p *people) note(a *API, e *roomserver.Event) {
	if !e.IsState() || e.Type != memberType {
		return
	}
	if e.Membership() == roomserver.Join {
		p.meet(a, e)
	} else {
		p.part(*e.StateKey)
	}
}

// part adds a user who has left a room.
func (p *people) part(user string) {
	if p.gone == nil {
		p.gone = map[string]bool{}
	}
	if len(p.gone) < maxNewPeople {
		p.gone[user] = true
	}
}

// meet adds the user of a membership event. Of users of other servers the newest counts: people change their names in
// all their rooms, but one after the other.
func (p *people) meet(a *API, e *roomserver.Event) {
	if a.rooms.IsLocal(*e.StateKey) {
		p.add(*e.StateKey, nil)
		return
	}
	if old := p.new[*e.StateKey]; old == nil || old.RoomID == e.RoomID || old.OriginServerTS <= e.OriginServerTS {
		p.add(*e.StateKey, e)
	}
}

func (p *people) add(user string, e *roomserver.Event) {
	if p.new == nil {
		p.new = map[string]*roomserver.Event{}
	}
	if len(p.new) < maxNewPeople || p.new[user] != nil {
		p.new[user] = e
	}
}

// memberFields are the profile fields that memberships tell.
var memberFields = [...]string{"displayname", "avatar_url"}

// memberField is a profile field in a membership event as JSON; nil if there is none.
func memberField(e *roomserver.Event, field string) json.RawMessage {
	if value, _ := e.ContentString(field); value != "" {
		return canonicaljson.AppendString(nil, value)
	}
	return nil
}

// shownProfile is what an answer tells of a profile: values by field, nil for a deleted one. A nil map stands for a user
// with whom no room is shared any more.
type shownProfile map[string]json.RawMessage

// profileNews collects what an answer tells of profiles.
type profileNews struct {
	api         *API
	user        string
	rooms       []roomserver.UserRoom
	people      *people
	after, upTo int64
	wanted      func(field string) bool
	shown       map[string]shownProfile
	// renamed has when users of other servers took the names and avatars that are shown.
	renamed map[string]int64
}

// profileNews reads the profiles of those whom the client gets to know, and what changed in (after, upTo] in those of
// everyone who shares a room with the user, as far as wanted. Of users of other servers it tells what their memberships
// say, and what their servers have said when they were asked.
func (a *API) profileNews(ctx context.Context, user string, p *people, after, upTo int64, wanted func(field string) bool) (map[string]shownProfile, error) {
	rooms, err := a.rooms.UserRooms(ctx, user)
	if err != nil {
		return nil, err
	}
	n := &profileNews{api: a, user: user, rooms: rooms, people: p, after: after, upTo: upTo, wanted: wanted, shown: map[string]shownProfile{}}
	if err := n.followMembers(ctx); err != nil {
		return nil, err
	}
	if err := n.readFields(ctx); err != nil {
		return nil, err
	}
	for u := range p.gone {
		visible, err := a.ephemeral.Visible(ctx, user, rooms, u)
		if err != nil {
			return nil, err
		}
		if !visible {
			n.shown[u] = nil
		}
	}
	return n.shown, nil
}

func (n *profileNews) put(user, field string, value json.RawMessage) {
	if !n.wanted(field) {
		return
	}
	if n.shown[user] == nil {
		n.shown[user] = shownProfile{}
	}
	n.shown[user][field] = value
}

// followMembers looks at how memberships have changed in all rooms in which the user has been all the time, whether the
// client is told of those rooms or not.
func (n *profileNews) followMembers(ctx context.Context) error {
	for _, r := range n.rooms {
		if r.Membership != roomserver.Join || r.Pos > n.after || n.after >= n.upTo || !n.api.tracker.roomChanged(r.NID, n.after) {
			continue
		}
		room, err := n.api.rooms.RoomByNID(ctx, r.NID)
		if err != nil {
			return err
		}
		before, err := n.api.rooms.StateAt(ctx, room, n.after)
		if err != nil {
			return err
		}
		now, err := n.api.rooms.StateAt(ctx, room, n.upTo)
		if err != nil {
			return err
		}
		deltas, err := n.api.rooms.StateDiff(ctx, room, before, now)
		if err != nil {
			return err
		}
		for _, d := range deltas {
			n.followMember(d)
		}
	}
	return nil
}

func (n *profileNews) followMember(d roomserver.StateDelta) {
	if d.Old == nil || d.Old.Type != memberType || d.Old.Membership() != roomserver.Join {
		return // who has come is introduced where the client is told of it
	}
	user := *d.Old.StateKey
	if d.New == nil || d.New.Membership() != roomserver.Join {
		n.people.part(user)
		return
	}
	if n.api.rooms.IsLocal(user) || d.New.OriginServerTS < n.renamed[user] {
		return
	}
	for _, field := range memberFields {
		value := memberField(d.New, field)
		if string(value) == string(memberField(d.Old, field)) {
			continue
		}
		n.put(user, field, value)
		if n.renamed == nil {
			n.renamed = map[string]int64{}
		}
		n.renamed[user] = d.New.OriginServerTS
	}
}

// readFields reads what the database has of those whom the client gets to know and of what changed.
func (n *profileNews) readFields(ctx context.Context) error {
	users := make([]string, 0, len(n.people.new))
	for u, e := range n.people.new {
		users = append(users, u)
		if e == nil {
			continue
		}
		for _, field := range memberFields {
			if value := memberField(e, field); value != nil && n.renamed[u] == 0 {
				n.put(u, field, value)
			}
		}
	}
	stored := n.after < n.upTo && n.api.tracker.profilesChanged(n.after)
	if len(users) == 0 && !stored {
		return nil
	}
	var changed, whole []accounts.ChangedField
	err := n.api.db.Read(ctx, func(tx *storage.Tx) error {
		changed, whole = changed[:0], whole[:0]
		if stored {
			err := accounts.ProfileChanges(tx, n.after, n.upTo, func(c *accounts.ChangedField) {
				if n.wanted(c.Field) {
					changed = append(changed, *c)
				}
			})
			if err != nil {
				return err
			}
		}
		return accounts.EachProfile(tx, users, func(user, field string, value json.RawMessage) {
			whole = append(whole, accounts.ChangedField{UserID: user, Field: field, Value: value})
		})
	})
	if err != nil {
		return fmt.Errorf("read profiles: %w", err)
	}
	for i := range whole {
		n.put(whole[i].UserID, whole[i].Field, whole[i].Value)
	}
	for i := range changed {
		c := &changed[i]
		visible, err := n.api.ephemeral.Visible(ctx, n.user, n.rooms, c.UserID)
		if err != nil {
			return err
		}
		if visible {
			n.put(c.UserID, c.Field, c.Value)
		}
	}
	return nil
}

// users appends the profiles that the client asked for by its filter (MSC4429).
func (l *look) users(ctx context.Context, out []byte) ([]byte, error) {
	ids := l.filter.ProfileFields
	if len(ids) == 0 {
		return out, nil
	}
	after := l.since.Pos
	if l.initial() {
		l.people.add(l.user, nil)
		after = l.upTo
	}
	news, err := l.api.profileNews(ctx, l.user, &l.people, after, l.upTo, func(field string) bool { return slices.Contains(ids, field) })
	if err != nil || len(news) == 0 {
		return out, err
	}
	type updates struct {
		Profile shownProfile `json:"profile_updates"`
	}
	shown := make(map[string]updates, len(news))
	for user, profile := range news {
		shown[user] = updates{profile}
	}
	raw, err := json.Marshal(shown)
	if err != nil {
		return nil, fmt.Errorf("encode profiles: %w", err)
	}
	return append(append(out, `,"org.matrix.msc4429.users":`...), raw...), nil
}

// profilesChanged tells whether the profile of a local user, or what is kept of another's, may have changed after a
// position.
func (t *tracker) profilesChanged(since int64) bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return since < t.start || t.profilePos > since
}
