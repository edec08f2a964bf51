package roomserver

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"

	"github.com/myelin-im/myelin/roomserver/authrules"
	"github.com/myelin-im/myelin/roomserver/pdu"
	"github.com/myelin-im/myelin/storage"
	"github.com/myelin-im/myelin/storage/storagetest"
)

const (
	// forkBranches branches of forkDepth state events each begin at the same event.
	forkBranches = 8
	forkDepth    = 10
	// transactionPDUs is how many events a transaction has at most.
	transactionPDUs = 50
)

// branch is one line of events that have not been received.
type branch struct {
	w     *world
	tip   pdu.Ref
	depth int64
	state map[authrules.StateKeyTuple]pdu.Ref // what its events cite
}

// trunk is the branch that begins at the room's head, whose state it reads as far as the given users' events need it.
func (w *world) trunk(users ...string) *branch {
	w.t.Helper()
	tip := w.room.Head().Extremities[0]
	b := &branch{w: w, tip: tip.Ref(), depth: tip.Depth, state: map[authrules.StateKeyTuple]pdu.Ref{}}
	places := []authrules.StateKeyTuple{{Type: pdu.TypeCreate}, {Type: pdu.TypePowerLevels}, {Type: pdu.TypeJoinRules}}
	for _, u := range users {
		places = append(places, authrules.StateKeyTuple{Type: pdu.TypeMember, StateKey: u})
	}
	for _, k := range places {
		e, err := w.s.StateEvent(ctx, w.room, w.room.Head().State, k.Type, k.StateKey)
		if err != nil {
			w.t.Fatal(err)
		}
		b.state[k] = e.Ref()
	}
	return b
}

// fork is a branch that goes on from the same event.
func (b *branch) fork() *branch {
	c := *b
	c.state = maps.Clone(b.state)
	return &c
}

// add makes the branch's next event, a message if key is nil.
func (b *branch) add(sender, typ string, key *string, content string) *pdu.Event {
	b.w.t.Helper()
	b.w.ts++
	b.depth++
	proto := &pdu.Proto{
		RoomID: b.w.room.ID, Sender: sender, Type: typ, StateKey: key, Content: json.RawMessage(content),
		OriginServerTS: b.w.ts, Depth: b.depth, PrevEvents: []pdu.Ref{b.tip},
	}
	for _, k := range authrules.Required(b.w.room.Version, authrules.Header{Type: typ, StateKey: key, Sender: sender, Content: proto.Content}) {
		if ref, ok := b.state[k]; ok {
			proto.AuthEvents = append(proto.AuthEvents, ref)
		}
	}
	p, err := b.w.room.Version.Build(proto, remote, "ed25519:r", b.w.key)
	if err != nil {
		b.w.t.Fatal(err)
	}
	b.tip = (&Event{Event: p}).Ref()
	if k := (authrules.StateKeyTuple{Type: typ}); key != nil {
		k.StateKey = *key
		b.state[k] = b.tip
	}
	return p
}

// forks builds branches of state that conflict, and a message on top of all: parents come before children.
func (w *world) forks() (list []*pdu.Event) {
	w.t.Helper()
	const who = "@a:remote"
	root, empty, other := w.trunk(who, "@b:remote"), "", "@b:remote"
	var merge *branch
	var tips []pdu.Ref
	for i := range forkBranches {
		b := root.fork()
		list = append(list, b.add(who, pdu.TypePowerLevels, &empty, w.levels(i)))
		for j := 1; j < forkDepth; j++ {
			switch j % 4 {
			case 1:
				list = append(list, b.add(who, "m.room.topic", &empty, fmt.Sprintf(`{"topic":"%d/%d"}`, i, j)))
			case 2:
				list = append(list, b.add(who, "org.example.state", &empty, fmt.Sprintf(`{"branch":%d}`, i)))
			case 3:
				list = append(list, b.add(who, "m.room.name", &empty, fmt.Sprintf(`{"name":"%d"}`, i)))
			default:
				list = append(list, b.add(other, pdu.TypeMember, &other, fmt.Sprintf(`{"displayname":"%d","membership":"join"}`, i)))
			}
		}
		merge, tips = b, append(tips, b.tip)
	}
	return append(list, merge.join(who, tips))
}

// join makes a message on top of several branches, of which b is the one whose auth events it cites.
func (b *branch) join(sender string, tips []pdu.Ref) *pdu.Event {
	b.w.t.Helper()
	b.w.ts++
	proto := &pdu.Proto{
		RoomID: b.w.room.ID, Sender: sender, Type: "m.room.message", Content: json.RawMessage(text),
		OriginServerTS: b.w.ts, Depth: b.depth + 1, PrevEvents: tips,
		AuthEvents: []pdu.Ref{b.state[authrules.StateKeyTuple{Type: pdu.TypePowerLevels}], b.state[authrules.StateKeyTuple{Type: pdu.TypeMember, StateKey: sender}]},
	}
	if !b.w.room.Version.RoomIDIsCreateHash {
		proto.AuthEvents = append(proto.AuthEvents, b.state[authrules.StateKeyTuple{Type: pdu.TypeCreate}])
	}
	p, err := b.w.room.Version.Build(proto, remote, "ed25519:r", b.w.key)
	if err != nil {
		b.w.t.Fatal(err)
	}
	return p
}

// TestForksInOneTransaction gives one server a forked history event by event and another one many at a time, in the same
// order: each event must have the same outcome, the same states around it, and the same current state at its position.
func TestForksInOneTransaction(t *testing.T) {
	for _, version := range []string{"1", "2", "6", "11", "12"} {
		t.Run("v"+version, func(t *testing.T) {
			eachPair(t, version, func(t *testing.T, w *world, away *Server) {
				r := rand.New(rand.NewPCG(3, 9))
				first := w.accept(w.build(nil, "@u:away", "m.room.member", "@u:away", `{"membership":"join"}`))
				entry := w.entry(first)
				order := shuffled(randomHistory(w, first, r, 40), first.ID, r)
				many := w.on(away, entry)
				one := w.on(testServer(t, storagetest.Open(t, storage.SQLite, Schema), "away"), entry)
				for batch := range slices.Chunk(order, 2*foreseeFrom) {
					list := make([]*pdu.Event, len(batch))
					for i, e := range batch {
						list[i] = e.Event
					}
					got, err := receiveAll(away, w.room.ID, list)
					if err != nil {
						t.Fatal(err)
					}
					for i, p := range list {
						if single := one.receive(p); got[i].Outcome != single.Outcome || got[i].Err != nil {
							t.Fatalf("%s %s: outcome %d (%v), alone %d (%v)", p.Type, p.ID, got[i].Outcome, got[i].Reason, single.Outcome, single.Reason)
						}
					}
				}
				for _, e := range order {
					if a, b := one.around(e.ID), many.around(e.ID); !reflect.DeepEqual(a, b) {
						t.Fatalf("around %s %s:\n%v\nalone\n%v", e.Type, e.ID, b, a)
					}
				}
				if a, b := ids(one.room.Head().Extremities), ids(many.room.Head().Extremities); !slices.Equal(a, b) {
					t.Errorf("extremities %v, alone %v", b, a)
				}
			})
		})
	}
}

// on is the world's room as another server has it that has entered it.
func (w *world) on(s *Server, entry Entry) *world {
	w.t.Helper()
	if _, err := s.Enter(ctx, entry); err != nil {
		w.t.Fatal(err)
	}
	room, err := s.Room(ctx, w.room.ID)
	if err != nil {
		w.t.Fatal(err)
	}
	return &world{t: w.t, s: s, room: room, key: w.key, ts: w.ts}
}

// around are the states before and after an event and, if it has a place, the current one at its position.
func (w *world) around(id string) (states [3]map[string]string) {
	w.t.Helper()
	e := w.event(id)
	states[0], states[1] = w.stateIDs(e.StateBefore), w.stateIDs(e.StateAfter)
	if e.Anchor != 0 {
		root, err := w.s.StateAt(ctx, w.room, e.Anchor)
		if err != nil {
			w.t.Fatal(err)
		}
		states[2] = w.stateIDs(root)
	}
	return states
}

// restarted is the world on a server that remembers nothing.
func (w *world) restarted() *world {
	w.t.Helper()
	s := testServer(w.t, w.s.db, "hs")
	room, err := s.Room(ctx, w.room.ID)
	if err != nil {
		w.t.Fatal(err)
	}
	return &world{t: w.t, s: s, room: room, key: w.key, ts: w.ts}
}

// Redactions and relations may come before what they are about: on their own, or in the transaction that brings it.
func TestWhatComesBeforeItsTarget(t *testing.T) {
	eachServer(t, func(t *testing.T, s *Server) {
		w := newWorld(t, s, "11")
		const who = "@a:remote"
		messages := func() (list []*pdu.Event) {
			for b := w.trunk(who); len(list) < 2*foreseeFrom; {
				list = append(list, b.add(who, "m.room.message", nil, text))
			}
			return list
		}
		about := func(target *pdu.Event) []*pdu.Event {
			relation := `{"m.relates_to":{"event_id":"` + target.ID + `","rel_type":"m.reference"}}`
			return []*pdu.Event{
				w.build(nil, who, "m.room.redaction", target.ID, `{"redacts":"`+target.ID+`"}`),
				w.trunk(who).add(who, "m.room.message", nil, relation),
			}
		}
		receive := func(list []*pdu.Event) {
			t.Helper()
			got, err := receiveAll(w.s, w.room.ID, list)
			if err != nil {
				t.Fatal(err)
			}
			for i := range got {
				if got[i].Outcome != Accepted {
					t.Fatalf("%s: %+v", list[i].Type, got[i])
				}
			}
		}
		for _, together := range []bool{false, true} {
			list := messages()
			target := list[foreseeFrom]
			name := "before"
			if early := about(target); together {
				name = "in the same transaction"
				receive(append(early, list...))
			} else {
				receive(early)
				w = w.restarted() // which has them from the database alone
				receive(list)
			}
			e := w.event(target.ID)
			if e.redaction == nil {
				t.Errorf("a redaction that came %s was not applied", name)
			}
			children, err := w.s.Children(ctx, w.room, []*Event{e})
			if err != nil || len(children[0].List) != 1 {
				t.Errorf("a relation that came %s: %d children, %v; want 1", name, len(children[0].List), err)
			}
			w.accept(w.build(nil, who, "m.room.message", "", text)) // joins the ends
		}
	})
}

// BenchmarkForks receives eight branches of ten state events each and the message that joins them, in a room of a
// thousand members: two transactions, so two turns.
func BenchmarkForks(b *testing.B) {
	for _, dialect := range []storage.Dialect{storage.SQLite, storage.PostgreSQL} {
		for _, version := range []string{"10", "12"} {
			b.Run(dialect.String()+"/v"+version, func(b *testing.B) {
				w := newWorld(b, testServer(b, storagetest.Open(b, dialect, Schema), "hs"), version)
				w.populate(1000)
				b.ResetTimer()
				for range b.N {
					b.StopTimer()
					list := w.forks()
					b.StartTimer()
					for len(list) > 0 {
						n := min(transactionPDUs, len(list))
						got, err := receiveAll(w.s, w.room.ID, list[:n])
						if err != nil {
							b.Fatal(err)
						}
						for i := range got {
							if got[i].Outcome != Accepted {
								b.Fatalf("%s: %+v", list[i].Type, got[i])
							}
						}
						list = list[n:]
					}
				}
			})
		}
	}
}

// levels are power levels in which @a:remote may do everything, and which say a number.
func (w *world) levels(number int) string {
	users := `"@a:remote":100,"@b:remote":50`
	if !w.room.Version.CreatorsPrivileged {
		users += `,"` + creator + `":100`
	}
	return fmt.Sprintf(`{"users":{%s},"events":{"org.example.branch":%d}}`, users, number)
}

// populate gives @a:remote all power and lets so many users of another server join.
func (w *world) populate(members int) {
	w.t.Helper()
	empty := ""
	if _, err := w.s.Send(ctx, w.room.ID, Draft{Sender: creator, Type: pdu.TypePowerLevels, StateKey: &empty, Content: json.RawMessage(w.levels(-1))}); err != nil {
		w.t.Fatal(err)
	}
	for first := 0; first < members; first += transactionPDUs {
		b := w.trunk()
		var list []*pdu.Event
		for i := range transactionPDUs {
			who := fmt.Sprintf("@m%d:remote", first+i)
			list = append(list, b.add(who, pdu.TypeMember, &who, `{"membership":"join"}`))
		}
		if _, err := receiveAll(w.s, w.room.ID, list); err != nil {
			w.t.Fatal(err)
		}
	}
}
