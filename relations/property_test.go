package relations_test

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"reflect"
	"testing"

	"github.com/myelin-im/myelin/relations"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/roomserver/pdu"
	"github.com/myelin-im/myelin/roomserver/roomservertest"
	"github.com/myelin-im/myelin/storage"
	"github.com/myelin-im/myelin/storage/storagetest"
)

var (
	ctx   = context.Background()
	users = []string{"@alice:hs", "@bob:hs", "@carol:hs", "@dave:hs"}
)

// chat is a room in which random things happen.
type chat struct {
	t    testing.TB
	s    *roomserver.Server
	room *roomserver.Room
	rand *rand.Rand
	ids  []string
}

func newChat(t testing.TB, s *roomserver.Server, seed uint64) *chat {
	t.Helper()
	v, ok := pdu.Lookup(pdu.DefaultVersion)
	if !ok {
		t.Fatal("no default room version")
	}
	id, err := s.CreateRoom(ctx, roomserver.NewRoom{Creator: users[0], Version: v, Preset: roomserver.PublicChat})
	if err != nil {
		t.Fatal(err)
	}
	room, err := s.Room(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	c := &chat{t: t, s: s, room: room, rand: rand.New(rand.NewPCG(seed, 1))}
	for _, u := range users[1:] {
		c.membership(u, roomserver.Join)
	}
	return c
}

func (c *chat) membership(user, membership string) {
	c.t.Helper()
	change := roomserver.MembershipChange{RoomID: c.room.ID, Sender: user, Target: user, Membership: membership}
	if _, err := c.s.SetMembership(ctx, change); err != nil {
		c.t.Fatal(err)
	}
}

func (c *chat) send(d roomserver.Draft, content any) {
	raw, err := json.Marshal(content)
	if err != nil {
		c.t.Fatal(err)
	}
	d.Content = raw
	id, err := c.s.Send(ctx, c.room.ID, d)
	if err != nil {
		return // refused: nested threads, repeated annotations, users who are away, others' messages
	}
	c.ids = append(c.ids, id)
}

func pick[T any](c *chat, list ...T) T { return list[c.rand.IntN(len(list))] }

// step does one random thing.
func (c *chat) step() {
	user := pick(c, users...)
	d := roomserver.Draft{Sender: user, Type: pick(c, "m.room.message", "m.room.message", "m.room.encrypted", "x"), OriginServerTS: 1000 + c.rand.Int64N(20)}
	content := map[string]any{"body": fmt.Sprint(len(c.ids))}
	n := c.rand.IntN(100)
	if len(c.ids) == 0 {
		n = 0
	}
	var target string
	if n > 0 {
		// Mostly among few, so that much relates to them.
		target = c.ids[min(c.rand.IntN(len(c.ids)), c.rand.IntN(len(c.ids)), c.rand.IntN(len(c.ids)))]
	}
	switch {
	case n < 12:
	case n < 80:
		rel := pick(c, "m.replace", "m.replace", "m.thread", "m.thread", "m.reference", "m.annotation", "other")
		content["m.relates_to"] = map[string]any{"rel_type": rel, "event_id": target, "key": "k"}
		if c.rand.IntN(4) > 0 {
			content["m.new_content"] = map[string]any{}
		}
		if c.rand.IntN(15) == 0 && user == users[0] {
			d.StateKey = new(string)
		}
	case n < 90:
		d = roomserver.Draft{Sender: pick(c, user, users[0]), Type: "m.room.redaction", Redacts: target}
	case n < 95:
		c.membership(users[3], pick(c, roomserver.Join, roomserver.Leave))
		return
	default:
		d = roomserver.Draft{Sender: users[0], Type: "m.room.history_visibility", StateKey: new(string)}
		content = map[string]any{"history_visibility": pick(c, "shared", "joined", "invited")}
	}
	c.send(d, content)
}

// recount does what the specification says, event by event.
func recount(t *testing.T, v *relations.View, parent *roomserver.Event, all []*roomserver.Event, ignored map[string]bool) relations.Summary {
	t.Helper()
	type content struct {
		New       *json.RawMessage `json:"m.new_content"`
		RelatesTo struct {
			RelType string `json:"rel_type"`
			EventID string `json:"event_id"`
		} `json:"m.relates_to"`
	}
	parse := func(e *roomserver.Event) (c content) {
		if err := json.Unmarshal(e.Content(), &c); err != nil {
			t.Fatal(err)
		}
		return c
	}
	var s relations.Summary
	var edit *roomserver.Event
	own := parent.Relation().Type
	for _, e := range all {
		c := parse(e)
		if c.RelatesTo.EventID != parent.ID || ignored[e.Sender] && e.Sender != v.User || v.UpTo > 0 && e.Anchor > v.UpTo {
			continue
		}
		ok, err := v.Viewer.Sees(ctx, e)
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			continue
		}
		switch c.RelatesTo.RelType {
		case "m.replace":
			if parent.Redacted || own == "m.replace" || e.Sender != parent.Sender || e.Type != parent.Type || e.StateKey != nil || parent.StateKey != nil ||
				c.New == nil && e.Type != "m.room.encrypted" {
				continue
			}
			if edit == nil || e.OriginServerTS > edit.OriginServerTS || e.OriginServerTS == edit.OriginServerTS && e.ID > edit.ID {
				edit = e
				s.Edit = e.NID
			}
		case "m.thread":
			if own != "" {
				continue
			}
			s.Replies++
			s.Latest, s.LatestAt = e.NID, e.Token()
			s.Participated = s.Participated || e.Sender == v.User || parent.Sender == v.User
		case "m.reference":
			s.References = append(s.References, e.ID)
		}
	}
	return s
}

func TestSummariesEqualARecount(t *testing.T) {
	storagetest.Each(t, []storage.Schema{roomserver.Schema}, func(t *testing.T, db *storage.DB) {
		found := relations.Summary{}
		for seed := range uint64(2) {
			warm := roomservertest.New(t, db)
			c := newChat(t, warm, seed)
			for range 4 {
				for range 60 {
					c.step()
				}
				c.compare(t, warm, &found)
			}
			// A server that has just started knows the same, and both go on to.
			cold := roomservertest.New(t, db)
			c.compare(t, cold, &found)
		}
		if found.Edit == 0 || found.Replies < 3 || len(found.References) < 3 || !found.Participated {
			t.Errorf("too little happened: %+v", found)
		}
	})
}

// compare checks what every user sees of every event. found is the most that there was.
func (c *chat) compare(t *testing.T, s *roomserver.Server, found *relations.Summary) {
	t.Helper()
	room, err := s.Room(ctx, c.room.ID)
	if err != nil {
		t.Fatal(err)
	}
	all, err := s.HistoryAfter(ctx, room, roomserver.HistoryToken{}, math.MaxInt64, 10_000)
	if err != nil {
		t.Fatal(err)
	}
	for i, user := range users {
		ignored := []map[string]bool{nil, {users[2]: true}, {users[0]: true, users[1]: true}, {users[3]: true, users[1]: true}}[i]
		viewer, err := s.Viewer(ctx, room, user, room.Head().Pos)
		if err != nil {
			t.Fatal(err)
		}
		v := &relations.View{
			Rooms: s, Room: room, User: user, Viewer: viewer,
			Ignored: func(context.Context) (map[string]bool, error) { return ignored, nil },
		}
		if c.rand.IntN(2) == 0 {
			v.UpTo = all[c.rand.IntN(len(all))].Anchor
		}
		got, err := v.Summaries(ctx, all)
		if err != nil {
			t.Fatal(err)
		}
		for i, e := range all {
			want := recount(t, v, e, all, ignored)
			if !reflect.DeepEqual(got[i], want) {
				t.Fatalf("%s sees of %s %s: %+v, want %+v", user, e.Type, e.ID, got[i], want)
			}
			found.Edit, found.Replies = max(found.Edit, want.Edit), max(found.Replies, want.Replies)
			found.Participated = found.Participated || want.Participated
			if len(want.References) > len(found.References) {
				found.References = want.References
			}
		}
	}
}
