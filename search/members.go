package search

import (
	"context"
	"strings"

	"github.com/myelin-im/myelin/accounts"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/roomserver/snapshot"
	"github.com/myelin-im/myelin/search/words"
	"github.com/myelin-im/myelin/storage"
)

// user is what changes about one user of the directory.
type user struct {
	id    int64 // 0 until numbered
	local bool
	fresh bool           // not in the directory yet
	rooms map[int64]bool // rooms that they are joined to now, or not any more
	// name and avatar are those of the newest membership, if profile.
	profile      bool
	name, avatar string
}

// maxName bounds the characters of a name that are kept.
const maxName = 256

// user returns what changes about a user in the batch.
func (b *batch) user(id string) *user {
	if b.users == nil {
		b.users = map[string]*user{}
	}
	u := b.users[id]
	if u == nil {
		u = &user{local: b.x.rooms.IsLocal(id), rooms: map[int64]bool{}}
		b.users[id] = u
	}
	return u
}

// visitMembers brings into the index who has come to a room and who has left it.
func (x *index) visitMembers(ctx context.Context, b *batch, room *roomserver.Room, from, upTo int64) error {
	before, err := x.rooms.StateAt(ctx, room, from)
	if err != nil {
		return err
	}
	after, err := x.rooms.StateAt(ctx, room, upTo)
	if err != nil || before == after {
		return err
	}
	open, err := x.open(ctx, room, after)
	if err != nil {
		return err
	}
	if before == 0 {
		return x.visitAllMembers(ctx, b, room, open)
	}
	wasOpen, err := x.open(ctx, room, before)
	if err != nil {
		return err
	}
	deltas, err := x.rooms.StateDiff(ctx, room, before, after)
	if err != nil {
		return err
	}
	for _, d := range deltas {
		e := d.New
		if e == nil {
			e = d.Old
		}
		if e.Type != "m.room.member" {
			continue
		}
		u := b.user(*e.StateKey)
		u.rooms[room.NID] = d.New != nil && d.New.Membership() == roomserver.Join
		if u.rooms[room.NID] {
			u.describe(d.New)
		}
		if err := b.flushIfFull(ctx); err != nil {
			return err
		}
	}
	if open != wasOpen {
		return x.visitAllMembers(ctx, b, room, open)
	}
	return nil
}

// open tells whether everybody may find the members of a room.
func (x *index) open(ctx context.Context, room *roomserver.Room, root snapshot.Ref) (bool, error) {
	rules, err := x.rooms.StateEvent(ctx, room, root, "m.room.join_rules", "")
	if err != nil {
		return false, err
	}
	if rules != nil && rules.JoinRule() == "public" {
		return true, nil
	}
	visibility, err := x.rooms.HistoryVisibility(ctx, room, root)
	return visibility == roomserver.WorldReadable, err
}

// visitAllMembers brings all joined members of a room into the index.
func (x *index) visitAllMembers(ctx context.Context, b *batch, room *roomserver.Room, open bool) error {
	if b.open == nil {
		b.open = map[int64]bool{}
	}
	b.open[room.NID] = open
	for after := ""; ; {
		members, err := x.rooms.JoinedMembers(ctx, room, after, maxBatch)
		if err != nil {
			return err
		}
		nids := make([]int64, len(members))
		for i, m := range members {
			nids[i] = m.EventNID
		}
		events, err := x.rooms.EventsByNID(ctx, room, nids)
		if err != nil {
			return err
		}
		for i, m := range members {
			u := b.user(m.UserID)
			u.rooms[room.NID] = true
			u.describe(events[i])
			after = m.UserID
		}
		if err := b.flushIfFull(ctx); err != nil || len(members) < maxBatch {
			return err
		}
	}
}

// describe takes a user's profile from their membership.
func (u *user) describe(e *roomserver.Event) {
	u.profile = true
	u.name, _ = e.ContentString("displayname")
	u.avatar, _ = e.ContentString("avatar_url")
	n := 0
	for i := range u.name {
		if n++; n > maxName {
			u.name = u.name[:i]
			break
		}
	}
	if len(u.avatar) > 4*maxName {
		u.avatar = ""
	}
}

// number finds the numbers of the users of the batch, and makes new ones. Nobody else writes the directory.
func (b *batch) number(ctx context.Context) error {
	err := b.x.db.Read(ctx, func(tx *storage.Tx) error {
		for id, u := range b.users {
			if _, err := tx.Get(`SELECT id FROM directory_users WHERE user_id = $1`, []any{id}, &u.id); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, u := range b.users {
		if u.id == 0 {
			u.fresh = true
			if u.id, err = b.x.ids.Next(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

func (b *batch) writeUsers(tx *storage.Tx) error {
	for room, open := range b.open {
		statement := `DELETE FROM directory_open_rooms WHERE room = $1`
		if open {
			statement = `INSERT INTO directory_open_rooms (room) VALUES ($1) ON CONFLICT DO NOTHING`
		}
		if _, err := tx.Exec(statement, room); err != nil {
			return err
		}
	}
	for id, u := range b.users {
		if err := u.write(tx, id); err != nil {
			return err
		}
	}
	return nil
}

// maxRoomTerms bounds the rooms by which a user is found: the newest.
const maxRoomTerms = 1000

func (u *user) write(tx *storage.Tx, id string) error {
	for room, joined := range u.rooms {
		statement := `DELETE FROM directory_rooms WHERE member = $1 AND room = $2`
		if joined {
			statement = `INSERT INTO directory_rooms (member, room) VALUES ($1, $2) ON CONFLICT DO NOTHING`
		}
		if _, err := tx.Exec(statement, u.id, room); err != nil {
			return err
		}
	}
	places, err := u.places(tx)
	if err != nil {
		return err
	}
	if len(places) == 0 {
		if u.fresh {
			return nil
		}
		if _, err := tx.Exec(`DELETE FROM directory_users WHERE id = $1`, u.id); err != nil {
			return err
		}
		return tx.DropTerms(termsOfUsers, u.id)
	}
	var oldName, oldAvatar, oldTerms string
	if !u.fresh {
		if _, err := tx.Get(`SELECT name, avatar, terms FROM directory_users WHERE id = $1`, []any{u.id}, &oldName, &oldAvatar, &oldTerms); err != nil {
			return err
		}
	}
	name, avatar := u.name, u.avatar
	if u.local {
		if name, avatar, err = accounts.MemberProfile(tx, id); err != nil {
			return err
		}
	} else if !u.profile {
		name, avatar = oldName, oldAvatar
	}
	terms := strings.Join(append(userTerms(id, name), places...), " ")
	if terms == oldTerms && name == oldName && avatar == oldAvatar {
		return nil
	}
	_, err = tx.Exec(`INSERT INTO directory_users (id, user_id, name, avatar, terms) VALUES ($1, $2, $3, $4, $5)
		ON CONFLICT (id) DO UPDATE SET name = excluded.name, avatar = excluded.avatar, terms = excluded.terms`,
		u.id, id, name, avatar, terms)
	if err != nil || terms == oldTerms {
		return err
	}
	return tx.SetTerms(termsOfUsers, u.id, terms)
}

// everywhere is the term of users whom everybody may find.
const everywhere = "_open"

// places returns the terms of where a user is.
func (u *user) places(tx *storage.Tx) ([]string, error) {
	var terms []string
	open := false
	rows := tx.Query(`SELECT r.room, o.room FROM directory_rooms r LEFT JOIN directory_open_rooms o ON o.room = r.room
		WHERE r.member = $1 ORDER BY r.room DESC`, u.id)
	var room int64
	var openRoom *int64
	for rows.Next() {
		rows.Scan(&room, &openRoom)
		switch {
		case openRoom != nil:
			open = true
		case len(terms) < maxRoomTerms:
			terms = append(terms, roomTerm(room))
		}
	}
	if open {
		terms = append(terms, everywhere)
	}
	return terms, rows.Close()
}

// userTerms returns the terms of who a user is: the words of name and localpart, and each of the two as a whole.
func userTerms(id, name string) []string {
	localpart, _, _ := strings.Cut(strings.TrimPrefix(id, "@"), ":")
	terms := words.Append(nil, localpart)
	whole := len(terms)
	terms = words.Append(terms, name)
	wholes := []string{wholeTerm(terms[:whole])}
	if len(terms) > whole {
		wholes = append(wholes, wholeTerm(terms[whole:]))
	}
	return append(terms, wholes...)
}

// wholeTerm is the term of all words of a name together.
func wholeTerm(terms []string) string {
	t := strings.Join(terms, "")
	return "_e" + strings.ToValidUTF8(t[:min(len(t), maxName)], "")
}
