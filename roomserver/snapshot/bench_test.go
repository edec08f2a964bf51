package snapshot

import (
	"fmt"
	"testing"
)

// stride is the distance of the nids of consecutive events of a room, on a server
// where a thousand rooms are as active: so that references cost what they do there.
const stride = 1000

// grown is a room of n members who joined one by one.
func grown(b *testing.B, n int) (*Store, *rowsOnDisk, Ref, int64) {
	b.Helper()
	disk := newDisk()
	store := NewStore(disk, 1<<30)
	nid := int64(stride)
	root, _ := disk.save(b, store, 1, nid, members(store, 0, 0, nid))
	for i := range n {
		nid += stride
		e := store.At(1, testSeed, root).Edit(nid)
		e.Set("m.room.member", member(i), nid)
		root, _ = disk.save(b, store, 1, nid, e)
	}
	return store, disk, root, nid
}

// joined is a room of n members that was joined at once.
func joined(b *testing.B, n int) (*Store, *rowsOnDisk, Ref, int64) {
	b.Helper()
	disk := newDisk()
	store := NewStore(disk, 1<<30)
	nid := int64(n)
	root, _ := disk.save(b, store, 1, nid, members(store, 0, n, nid))
	return store, disk, root, nid
}

// commit stores a change, adds the size of its rows to size, and returns the new state.
func commit(b *testing.B, store *Store, e *Edit, nid int64, size *int) Ref {
	b.Helper()
	root, rows, err := e.Commit(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	store.Durable(1, nid)
	for _, r := range rows {
		*size += len(r.Data)
	}
	return root
}

// BenchmarkSet changes the membership of one member after the other. B/change is the
// size of the stored rows.
func BenchmarkSet(b *testing.B) {
	for _, how := range []struct {
		name string
		make func(*testing.B, int) (*Store, *rowsOnDisk, Ref, int64)
	}{{"grown", grown}, {"joined", joined}} {
		for _, n := range []int{100, 1000, 10_000, 100_000} {
			b.Run(fmt.Sprintf("%s/%d", how.name, n), func(b *testing.B) {
				store, _, root, nid := how.make(b, n)
				size, i := 0, 0
				b.ReportAllocs()
				for b.Loop() {
					nid += stride
					i++
					e := store.At(1, testSeed, root).Edit(nid)
					e.Set("m.room.member", member(i*7919%n), nid)
					root = commit(b, store, e, nid, &size)
				}
				b.ReportMetric(float64(size)/float64(b.N), "B/change")
			})
		}
	}
}

// BenchmarkSetTopic changes a type that has one key.
func BenchmarkSetTopic(b *testing.B) {
	store, _, root, nid := grown(b, 10_000)
	size := 0
	b.ReportAllocs()
	for b.Loop() {
		nid += stride
		e := store.At(1, testSeed, root).Edit(nid)
		e.Set("m.room.topic", "", nid)
		root = commit(b, store, e, nid, &size)
	}
	b.ReportMetric(float64(size)/float64(b.N), "B/change")
}

func BenchmarkGet(b *testing.B) {
	for _, n := range []int{100, 10_000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			store, _, root, _ := grown(b, n)
			tree := store.At(1, testSeed, root)
			keys := make([]string, 1024)
			for i := range keys {
				keys[i] = member(i * 7919 % n)
			}
			i := 0
			b.ReportAllocs()
			for b.Loop() {
				i++
				if nid, err := tree.Get(b.Context(), "m.room.member", keys[i%1024]); err != nil || nid == 0 {
					b.Fatal(nid, err)
				}
			}
		})
	}
}

// BenchmarkDiff compares two states of a room of 10,000 members.
func BenchmarkDiff(b *testing.B) {
	for _, changes := range []int{1, 100} {
		b.Run(fmt.Sprint(changes), func(b *testing.B) {
			store, disk, root, nid := grown(b, 10_000)
			other := root
			for i := range changes {
				nid += stride
				e := store.At(1, testSeed, other).Edit(nid)
				e.Set("m.room.member", member(i*97), nid)
				other, _ = disk.save(b, store, 1, nid, e)
			}
			b.ReportAllocs()
			for b.Loop() {
				n := 0
				if err := store.At(1, testSeed, root).Diff(b.Context(), other, func(_, _ int64) error { n++; return nil }); err != nil || n != changes {
					b.Fatal(n, err)
				}
			}
		})
	}
}

func BenchmarkWalk(b *testing.B) {
	store, _, root, _ := grown(b, 10_000)
	b.ReportAllocs()
	for b.Loop() {
		n := 0
		if err := store.At(1, testSeed, root).Walk(b.Context(), func(int64) error { n++; return nil }); err != nil || n != 10_011 {
			b.Fatal(n, err)
		}
	}
}

// BenchmarkBuild makes the state of a join in one pack. B/member is the size of its rows.
func BenchmarkBuild(b *testing.B) {
	for _, n := range []int{1000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			names := make([]string, n)
			for i := range names {
				names[i] = member(i)
			}
			size, count := 0, 0
			b.ReportAllocs()
			for b.Loop() {
				e := NewStore(newDisk(), 1<<30).At(1, testSeed, 0).Edit(int64(n))
				for i, name := range names {
					e.Set("m.room.member", name, int64(i+1))
				}
				_, rows, err := e.Commit(b.Context())
				if err != nil {
					b.Fatal(err)
				}
				size, count = 0, len(rows)
				for _, r := range rows {
					size += len(r.Data)
				}
			}
			b.ReportMetric(float64(size)/float64(n), "B/member")
			b.ReportMetric(float64(count), "rows")
		})
	}
}
