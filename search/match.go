package search

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/roomserver/snapshot"
	"github.com/myelin-im/myelin/search/words"
	"github.com/myelin-im/myelin/storage"
)

const (
	// maxMatches bounds the matches that are ranked and counted: the newest.
	maxMatches = 500
	// maxRounds bounds how often more matches are asked for because the user may not see enough of them.
	maxRounds = 4
	// roomChunk is how many rooms one query names.
	roomChunk = 500
)

// match is an entry of the index that has the words.
type match struct {
	id, room, event int64
	part            part
	sender          string
	before          snapshot.Ref
	words           string
	rank            float64
}

// view is how the user sees a room.
type view struct {
	room   *roomserver.Room
	viewer *roomserver.Viewer
	// until is the last position of which the user learns, root the state there or now.
	until int64
	root  snapshot.Ref
	// hidden rooms are not searched at all.
	hidden bool
}

// finder does one search.
type finder struct {
	*API
	user  string
	query *query
	words []words.Word
	// phrases are the words as they stand in the words of an entry.
	phrases []string
	rooms   map[int64]roomserver.UserRoom
	views   map[int64]*view
	ignored map[string]bool
}

// newFinder prepares a search.
func (a *API) newFinder(ctx context.Context, user string, q *query) (*finder, error) {
	f := &finder{API: a, user: user, query: q, words: words.Query(q.term), rooms: map[int64]roomserver.UserRoom{}, views: map[int64]*view{}}
	for _, w := range f.words {
		phrase := " " + strings.Join(w.Terms, " ")
		if !w.Prefix {
			phrase += " "
		}
		f.phrases = append(f.phrases, phrase)
	}
	all, err := a.rooms.UserRooms(ctx, user)
	if err != nil {
		return nil, err
	}
	for _, r := range all {
		if !r.Forgotten && q.filter.Allows(r.RoomID) && (q.from.Group != byRoom || q.from.In == r.RoomID) {
			f.rooms[r.NID] = r
		}
	}
	f.ignored, err = a.ignored(ctx, user)
	return f, err
}

// find returns the matches that the user may see, in order, and whether there are more beyond the last.
func (f *finder) find(ctx context.Context) (found []*match, more bool, err error) {
	if len(f.words) == 0 || len(f.rooms) == 0 {
		return nil, false, nil
	}
	below := f.query.from.Below
	for range maxRounds {
		page, err := f.read(ctx, below)
		if err != nil {
			return nil, false, err
		}
		if more = len(page) == maxMatches; len(page) > 0 {
			below = page[len(page)-1].id
		}
		for _, m := range page {
			ok, err := f.keeps(ctx, m)
			if err != nil {
				return nil, false, err
			}
			if ok {
				found = append(found, m)
			}
		}
		if !more || len(found) >= maxMatches {
			break
		}
	}
	if len(found) > maxMatches {
		found, more = found[:maxMatches], true
	}
	for _, m := range found {
		m.rank = f.rank(m)
	}
	if !f.query.recent {
		slices.SortStableFunc(found, func(a, b *match) int { return cmp.Compare(b.rank, a.rank) })
	}
	return found, more, nil
}

// read asks the index for the newest matches.
func (f *finder) read(ctx context.Context, below int64) ([]*match, error) {
	var q storage.TermQuery
	for _, w := range f.words {
		for _, term := range w.Terms {
			q = append(q, []storage.Term{{Text: term, Prefix: w.Prefix}})
		}
	}
	if f.query.parts != nil {
		var list []storage.Term
		for _, p := range f.query.parts {
			list = append(list, storage.Term{Text: p.term()})
		}
		q = append(q, list)
	}
	var rooms []storage.Term
	for nid := range f.rooms {
		rooms = append(rooms, storage.Term{Text: roomTerm(nid)})
	}
	var found []*match
	err := f.db.Read(ctx, func(tx *storage.Tx) error {
		found = nil
		for chunk := range slices.Chunk(rooms, roomChunk) {
			var err error
			if found, err = f.readRooms(tx, append(q[:len(q):len(q)], chunk), below, found); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("search the index: %w", err)
	}
	slices.SortFunc(found, func(a, b *match) int { return cmp.Compare(b.id, a.id) })
	return found[:min(len(found), maxMatches)], nil
}

// readRooms appends the newest matches in some rooms.
func (f *finder) readRooms(tx *storage.Tx, q storage.TermQuery, below int64, found []*match) ([]*match, error) {
	numbers, text := tx.Newest(anyEntries.terms, q)
	rows := tx.Query(`SELECT e.id, e.room, e.event, e.part, e.sender, e.state_before, e.words
		FROM (`+numbers+`) m
		JOIN search_events e ON e.id = m.id`, text, below, int64(maxMatches))
	var kind, before int64
	for rows.Next() {
		m := &match{}
		rows.Scan(&m.id, &m.room, &m.event, &kind, &m.sender, &before, &m.words)
		m.part, m.before = part(kind), snapshot.Ref(before)
		found = append(found, m)
	}
	return found, rows.Close()
}

// keeps tells whether a match is a result, as far as the index knows.
func (f *finder) keeps(ctx context.Context, m *match) (bool, error) {
	if f.ignored[m.sender] || !f.query.filter.EventFilter.Match(m.part.eventType(), m.sender) || f.query.from.Group == bySender && f.query.from.In != m.sender {
		return false, nil
	}
	for _, phrase := range f.phrases {
		if !strings.Contains(m.words, phrase) {
			return false, nil
		}
	}
	v, err := f.view(ctx, m.room)
	if err != nil {
		return false, err
	}
	anchor := anchorOf(m.id)
	if v.hidden || anchor > v.until {
		return false, nil
	}
	return v.viewer.SeesChild(ctx, &roomserver.Child{Anchor: anchor, StateBefore: m.before})
}

// view returns how the user sees a room. Rooms that they never were in are hidden, although they may have been invited,
// and so are encrypted ones, although they may have begun otherwise.
func (f *finder) view(ctx context.Context, nid int64) (*view, error) {
	if v := f.views[nid]; v != nil {
		return v, nil
	}
	v := &view{hidden: true}
	room, err := f.API.rooms.RoomByNID(ctx, nid)
	if errors.Is(err, roomserver.ErrUnknownRoom) {
		f.views[nid] = v
		return v, nil
	}
	if err != nil {
		return nil, err
	}
	v.room = room
	head := room.Head()
	if v.viewer, err = f.API.rooms.Viewer(ctx, room, f.user, head.Pos); err != nil {
		return nil, err
	}
	if v.until = v.viewer.JoinedUntil(); v.until > 0 {
		if v.root, err = f.API.rooms.StateAt(ctx, room, min(v.until, head.Pos)); err != nil {
			return nil, err
		}
		encryption, err := f.API.rooms.StateEvent(ctx, room, v.root, "m.room.encryption", "")
		if err != nil {
			return nil, err
		}
		v.hidden = encryption != nil
	}
	f.views[nid] = v
	return v, nil
}

// rank says how well a match fits: how often it has the words, in relation to its length, and more if it has them in the
// order in which they were asked for.
func (f *finder) rank(m *match) float64 {
	const (
		usual    = 12.0 // words of a message
		damping  = 1.2
		byLength = 0.75
	)
	length := float64(strings.Count(m.words, " ") - 1)
	norm := damping * (1 - byLength + byLength*length/usual)
	rank := 0.0
	for _, phrase := range f.phrases {
		n := float64(strings.Count(m.words, phrase))
		rank += n * (damping + 1) / (n + norm)
	}
	if len(f.phrases) > 1 {
		var together strings.Builder
		for _, w := range f.words {
			together.WriteString(" " + strings.Join(w.Terms, " "))
		}
		if strings.Contains(m.words, together.String()) {
			rank++
		}
	}
	return rank
}
