package search

import (
	"context"
	"maps"
	"slices"
	"strings"

	"github.com/myelin-im/myelin/accounts"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/roomserver/snapshot"
	"github.com/myelin-im/myelin/search/words"
	"github.com/myelin-im/myelin/storage"
)

// user is what changes about one user of the directory.
type user struct {
	local bool
	rooms map[int64]bool // rooms that they are joined to now, or not any more
	moves []int64        // those of them that the directory has otherwise
	// name and avatar are those of the newest membership, if profile.
	profile      bool
	name, avatar string
}

// The tables of the directory, as units of rows write them.
var (
	openTable   = storage.DeclareTable("directory_open_rooms", storage.InsertIgnore, storage.Key("room", storage.Int))
	memberTable = storage.DeclareTable("directory_rooms", storage.InsertIgnore,
		storage.Key("member", storage.Int), storage.Key("room", storage.Int))
	userTable = storage.DeclareTable("directory_users", storage.Put,
		storage.Key("id", storage.Int), storage.Col("user_id", storage.Bytes), storage.Col("name", storage.Bytes),
		storage.Col("avatar", storage.Bytes), storage.Col("terms", storage.Bytes))
	userTerms = storage.DeclareTerms("directory_terms", storage.Put)
)

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

// known is what the directory has of a user.
type known struct {
	id                  int64 // 0: nothing
	name, avatar, terms string
	rooms               map[int64]bool // whether they are open to everybody
}

// addUsers adds to a unit what the batch changes in the directory. That can be found out before it is written, because
// nobody else writes the directory.
func (b *batch) addUsers(ctx context.Context, unit *storage.Unit) error {
	if len(b.users) == 0 && len(b.open) == 0 {
		return nil
	}
	users, err := b.readUsers(ctx)
	if err != nil {
		return err
	}
	for room, open := range b.open {
		if open {
			unit.Add(openTable, room)
		} else {
			unit.Delete(openTable, room)
		}
	}
	for id, u := range b.users {
		k := users[id]
		if k.id == 0 && len(k.rooms) > 0 {
			if k.id, err = b.x.ids.Next(ctx); err != nil {
				return err
			}
		}
		if k.id != 0 {
			u.add(unit, id, k)
		}
	}
	return nil
}

// readUsers reads what the directory has of the users of the batch, with the rooms in which they are now.
func (b *batch) readUsers(ctx context.Context) (users map[string]*known, err error) {
	err = b.x.db.Read(ctx, func(tx *storage.Tx) error {
		users = make(map[string]*known, len(b.users))
		open := maps.Clone(b.open)
		if open == nil {
			open = map[int64]bool{}
		}
		for id, u := range b.users {
			k, err := readUser(tx, id)
			if err != nil {
				return err
			}
			if users[id] = k; u.local {
				if u.name, u.avatar, err = accounts.MemberProfile(tx, id); err != nil {
					return err
				}
			}
			if u.moves, err = u.move(tx, k, open); err != nil {
				return err
			}
		}
		return nil
	})
	return users, err
}

// readUser reads what the directory has of a user.
func readUser(tx *storage.Tx, id string) (*known, error) {
	k := &known{rooms: map[int64]bool{}}
	found, err := tx.Get(`SELECT id, name, avatar, terms FROM directory_users WHERE user_id = $1`, []any{id}, &k.id, &k.name, &k.avatar, &k.terms)
	if err != nil || !found {
		return k, err
	}
	rows := tx.Query(`SELECT r.room, o.room FROM directory_rooms r LEFT JOIN directory_open_rooms o ON o.room = r.room WHERE r.member = $1`, k.id)
	var room int64
	var open *int64
	for rows.Next() {
		rows.Scan(&room, &open)
		k.rooms[room] = open != nil
	}
	return k, rows.Close()
}

// move brings the rooms of a user up to date and returns those that have come or gone. open has which rooms are open, as
// far as it was asked.
func (u *user) move(tx *storage.Tx, k *known, open map[int64]bool) (moves []int64, err error) {
	for room, joined := range u.rooms {
		if _, was := k.rooms[room]; was != joined {
			moves = append(moves, room)
		}
		if !joined {
			delete(k.rooms, room)
			continue
		}
		is, asked := open[room]
		if !asked {
			var one int64
			if is, err = tx.Get(`SELECT 1 FROM directory_open_rooms WHERE room = $1`, []any{room}, &one); err != nil {
				return nil, err
			}
			open[room] = is
		}
		k.rooms[room] = is
	}
	return moves, nil
}

// maxRoomTerms bounds the rooms by which a user is found: the newest.
const maxRoomTerms = 1000

// add adds what changes about a user in the directory.
func (u *user) add(unit *storage.Unit, id string, k *known) {
	for _, room := range u.moves {
		if u.rooms[room] {
			unit.Add(memberTable, k.id, room)
		} else {
			unit.Delete(memberTable, k.id, room)
		}
	}
	if len(k.rooms) == 0 {
		unit.Delete(userTable, k.id)
		unit.Delete(userTerms, k.id)
		return
	}
	name, avatar := u.name, u.avatar
	if !u.local && !u.profile {
		name, avatar = k.name, k.avatar
	}
	terms := strings.Join(append(termsOf(id, name), k.places()...), " ")
	if terms != k.terms || name != k.name || avatar != k.avatar {
		unit.Add(userTable, k.id, id, name, avatar, terms)
	}
	if terms != k.terms {
		unit.Add(userTerms, k.id, storage.Text(terms))
	}
}

// everywhere is the term of users whom everybody may find.
const everywhere = "_open"

// places returns the terms of where a user is.
func (k *known) places() []string {
	var terms []string
	open := false
	rooms := slices.Sorted(maps.Keys(k.rooms))
	for _, room := range slices.Backward(rooms) {
		switch {
		case k.rooms[room]:
			open = true
		case len(terms) < maxRoomTerms:
			terms = append(terms, roomTerm(room))
		}
	}
	if open {
		terms = append(terms, everywhere)
	}
	return terms
}

// termsOf returns the terms of who a user is: the words of name and localpart, and each of the two as a whole.
func termsOf(id, name string) []string {
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
