package stateres

import (
	"fmt"
	"testing"

	"github.com/myelin-im/myelin/roomserver/authchain"
	"github.com/myelin-im/myelin/roomserver/pdu"
	"github.com/myelin-im/myelin/roomserver/snapshot"
)

// forked is a room of n members in which eight moderators, each on a branch of its own, have
// changed the power levels, banned and admitted people, and set the topic.
type forked struct {
	*server
	roomID string
	tip    map[string]string // last event by branch
	made   int
	heads  []snapshot.Ref
}

const branches = 8

func newForked(b *testing.B, v *pdu.Version, n int) *forked {
	f := &forked{server: newServer(b, v), roomID: "!room:test", tip: map[string]string{}}
	empty := ""
	mods := map[string]any{}
	for i := range branches {
		mods[user("mod", i)] = 50 + i
	}
	creator := "@creator:test"
	if !v.CreatorsPrivileged {
		mods[creator] = 100
	}
	f.send(b, "main", creator, pdu.TypeCreate, &empty, map[string]any{"creator": creator})
	f.send(b, "main", creator, pdu.TypeMember, &creator, map[string]any{"membership": "join"})
	f.send(b, "main", creator, pdu.TypePowerLevels, &empty, map[string]any{"users": mods})
	f.send(b, "main", creator, pdu.TypeJoinRules, &empty, map[string]any{"join_rule": "public"})
	join := func(branch, who string) {
		f.send(b, branch, who, pdu.TypeMember, &who, map[string]any{"membership": "join"})
	}
	for i := range branches {
		join("main", user("mod", i))
	}
	for i := range n {
		join("main", user("member", i))
	}
	for i := range branches {
		branch, mod := fmt.Sprint(i), user("mod", i)
		f.tip[branch] = f.tip["main"]
		levels := map[string]any{"users": mods, "events": map[string]any{"m.room.topic": i}}
		f.send(b, branch, mod, pdu.TypePowerLevels, &empty, levels)
		levels = map[string]any{"users": mods, "events": map[string]any{"m.room.topic": i, "m.room.name": i}}
		f.send(b, branch, mod, pdu.TypePowerLevels, &empty, levels)
		for k := range 3 {
			banned := user("member", (i+k)%n)
			f.send(b, branch, mod, pdu.TypeMember, &banned, map[string]any{"membership": "ban"})
			join(branch, user("late", i*3+k))
		}
		f.send(b, branch, mod, "m.room.topic", &empty, map[string]any{"topic": branch})
		f.heads = append(f.heads, f.byID[f.tip[branch]].after)
	}
	return f
}

func user(kind string, i int) string { return fmt.Sprintf("@%s%d:test", kind, i) }

func (f *forked) send(b *testing.B, branch, sender, typ string, key *string, content map[string]any) {
	b.Helper()
	f.made++
	d := draft{seed: fmt.Sprint("event", f.made), sender: sender, typ: typ, key: key, content: content, ts: int64(f.made), depth: int64(f.made)}
	if tip := f.tip[branch]; tip != "" {
		d.prev = []string{tip}
		d.auth = f.authFor(f.byID[tip].after, &d)
	}
	ev := makeEvent(b, f.v, f.roomID, d)
	f.roomID = ev.RoomID
	if r := f.receive(ev); r.rejected {
		b.Fatalf("%s by %s is rejected", typ, sender)
	}
	f.tip[branch] = ev.ID
}

// BenchmarkResolve merges eight branches. "warm" has what it needs in memory, "cold" begins
// with nothing; reads is how many rows and events it asks for.
func BenchmarkResolve(b *testing.B) {
	for _, version := range []int{1, 10, 12} {
		for _, n := range []int{100, 1000, 10_000} {
			f := newForked(b, lookup(b, version), n)
			run := func(name string, prepare func()) {
				b.Run(fmt.Sprintf("v%d/%d/%s", version, n, name), func(b *testing.B) {
					b.ReportAllocs()
					f.asked = 0
					for b.Loop() {
						prepare()
						edit, err := Resolve(b.Context(), f.input(f.heads), 1<<40)
						if err != nil {
							b.Fatal(err)
						}
						if root, rows, err := edit.Commit(b.Context()); err != nil || root == 0 || len(rows) == 0 {
							b.Fatal(root, len(rows), err)
						}
						f.states.Drop(room, 1<<40)
					}
					b.ReportMetric(float64(f.asked)/float64(b.N), "reads/op")
				})
			}
			run("warm", func() {})
			run("cold", func() {
				f.states = snapshot.NewStore(f, 1<<26)
				f.auth = authchain.New(f, room)
			})
		}
	}
}
