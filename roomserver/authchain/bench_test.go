package authchain

import "testing"

// old is a room whose power levels were changed 2,000 times by 20 moderators.
func old(b *testing.B) (x *Index, first, last int64) {
	b.Helper()
	x = New(newStored(), 1)
	nid := int64(0)
	add := func(replaces int64, auth ...int64) int64 {
		nid++
		if _, err := x.Add(b.Context(), nid, auth, replaces); err != nil {
			b.Fatal(err)
		}
		x.Durable(nid)
		return nid
	}
	create := add(0)
	creator := add(0, create)
	power := add(0, create, creator)
	rules := add(0, create, creator, power)
	var mods []int64
	for range 20 {
		mods = append(mods, add(0, create, power, rules))
	}
	for i := range 2000 {
		power = add(power, create, power, mods[i%20])
	}
	return x, rules, add(0, create, power, rules)
}

// BenchmarkReaches asks for an old event that a new one does not rest on through the power
// levels' long chain.
func BenchmarkReaches(b *testing.B) {
	x, _, last := old(b)
	alone, err := x.Add(b.Context(), 1<<40, []int64{1, 2}, 0)
	if err != nil || alone.Order == 0 {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if ok, err := x.restsOn(b.Context(), last, 1<<40); ok || err != nil {
			b.Fatal(ok, err)
		}
	}
}

// BenchmarkAdd enters changes of a topic, which cite three events.
func BenchmarkAdd(b *testing.B) {
	x, rules, last := old(b)
	nid, size := int64(1<<41), 0
	b.ReportAllocs()
	for b.Loop() {
		nid++
		row, err := x.Add(b.Context(), nid, []int64{1, rules, last}, 0)
		if err != nil {
			b.Fatal(err)
		}
		x.Durable(nid)
		size += len(row.Data)
	}
	b.ReportMetric(float64(size)/float64(b.N), "B/event")
}

// BenchmarkDifference compares two states that each changed a topic, in a room with a long
// past.
func BenchmarkDifference(b *testing.B) {
	x, rules, last := old(b)
	g := newGraph()
	shared := sharedSet{g, map[int]int64{}}
	for i, nid := range []int64{1, 2, rules, last} {
		g.key[nid] = i + 1
		shared.byKey[i+1] = nid
	}
	for _, nid := range []int64{1 << 41, 1<<41 + 1} {
		g.key[nid] = 10
		if _, err := x.Add(b.Context(), nid, []int64{1, rules, last}, 0); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportAllocs()
	for b.Loop() {
		out, err := x.Difference(b.Context(), [][]int64{{1 << 41}, {1<<41 + 1}}, shared)
		if err != nil || len(out) != 2 {
			b.Fatal(out, err)
		}
	}
}
