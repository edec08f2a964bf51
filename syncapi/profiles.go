package syncapi

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/myelin-im/myelin/accounts"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/storage"
)

// people are the users of whose profiles an answer tells beside what changed: those whom the client gets to know with it,
// and those who have left a room.
type people struct{ new, gone map[string]bool }

// maxNewPeople bounds the whole profiles of one answer. Clients ask for others when they show them.
const maxNewPeople = 1000

// note takes notice of a membership event of a local user that the client is sent.
func (p *people) note(a *API, e *roomserver.Event) {
	if !e.IsState() || e.Type != memberType || !a.rooms.IsLocal(*e.StateKey) {
		return
	}
	if e.Membership() == roomserver.Join {
		p.add(*e.StateKey)
		return
	}
	if p.gone == nil {
		p.gone = map[string]bool{}
	}
	if len(p.gone) < maxNewPeople {
		p.gone[*e.StateKey] = true
	}
}

func (p *people) add(user string) {
	if p.new == nil {
		p.new = map[string]bool{}
	}
	if len(p.new) < maxNewPeople {
		p.new[user] = true
	}
}

// shownProfile is what an answer tells of a profile: values by field, nil for a deleted one. A nil map stands for a user
// with whom no room is shared any more.
type shownProfile map[string]json.RawMessage

// profileNews reads the profiles of those whom the client gets to know, and what changed in (after, upTo] in those of
// everyone who shares a room with the user, as far as wanted.
func (a *API) profileNews(ctx context.Context, user string, p *people, after, upTo int64, wanted func(field string) bool) (map[string]shownProfile, error) {
	rooms, err := a.rooms.UserRooms(ctx, user)
	if err != nil {
		return nil, err
	}
	out := map[string]shownProfile{}
	put := func(user, field string, value json.RawMessage) {
		if !wanted(field) {
			return
		}
		if out[user] == nil {
			out[user] = shownProfile{}
		}
		out[user][field] = value
	}
	var changed []accounts.ChangedField
	err = a.db.Read(ctx, func(tx *storage.Tx) error {
		clear(out)
		changed = changed[:0]
		if after < upTo {
			err := accounts.ProfileChanges(tx, after, upTo, func(c *accounts.ChangedField) {
				if wanted(c.Field) {
					changed = append(changed, *c)
				}
			})
			if err != nil {
				return err
			}
		}
		users := make([]string, 0, len(p.new))
		for u := range p.new {
			users = append(users, u)
		}
		return accounts.EachProfile(tx, users, put)
	})
	if err != nil {
		return nil, fmt.Errorf("read profiles: %w", err)
	}
	for i := range changed {
		c := &changed[i]
		visible, err := a.ephemeral.Visible(ctx, user, rooms, c.UserID)
		if err != nil {
			return nil, err
		}
		if visible {
			put(c.UserID, c.Field, c.Value)
		}
	}
	for u := range p.gone {
		visible, err := a.ephemeral.Visible(ctx, user, rooms, u)
		if err != nil {
			return nil, err
		}
		if !visible {
			out[u] = nil
		}
	}
	return out, nil
}

// users appends the profiles that the client asked for by its filter (MSC4429).
func (l *look) users(ctx context.Context, out []byte) ([]byte, error) {
	ids := l.filter.ProfileFields
	if len(ids) == 0 {
		return out, nil
	}
	after := l.upTo
	switch {
	case l.initial():
		l.people.add(l.user)
	case l.api.tracker.profilesChanged(l.since.Pos):
		after = l.since.Pos
	}
	if after == l.upTo && len(l.people.new)+len(l.people.gone) == 0 {
		return out, nil
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

// profilesChanged tells whether somebody's profile may have changed after a position.
func (t *tracker) profilesChanged(since int64) bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return since < t.start || t.profilePos > since
}
