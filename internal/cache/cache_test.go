package cache

import "testing"

func TestCacheKeepsWhatIsUsed(t *testing.T) {
	c := New[int, int](1000)
	c.Put(-1, -1, 10)
	for i := range 1000 {
		c.Put(i, i, 10)
		if v, ok := c.Get(-1); !ok || v != -1 {
			t.Fatalf("after %d entries: what is asked for each time is forgotten", i)
		}
		if v, ok := c.Get(i); !ok || v != i {
			t.Fatalf("the entry just put is forgotten")
		}
		if c.Len() > 102 {
			t.Fatalf("%d entries, the limit is 100", c.Len())
		}
	}
	if _, ok := c.Get(0); ok {
		t.Error("an entry nobody asked for is still there")
	}
}

func TestCacheReplaceAndDelete(t *testing.T) {
	c := New[string, int](1000)
	c.Put("a", 1, 10)
	c.Put("a", 2, 20)
	if v, _ := c.Get("a"); v != 2 || c.parts[0].size != 20 {
		t.Errorf("value %d, size %d", v, c.parts[0].size)
	}
	if v := c.GetOrPut("a", 3, 5); v != 2 {
		t.Errorf("GetOrPut replaced the value: %d", v)
	}
	c.Delete("a")
	c.Delete("a")
	if _, ok := c.Get("a"); ok || c.parts[0].size != 0 {
		t.Errorf("still there, size %d", c.parts[0].size)
	}
	if v := c.GetOrPut("a", 3, 5); v != 3 {
		t.Errorf("GetOrPut: %d", v)
	}
	// An entry larger than the cache is accepted and soon forgotten.
	c.Put("huge", 1, 2000)
	c.Put("b", 1, 1000)
	if c.Len() > 2 {
		t.Errorf("%d entries", c.Len())
	}
}

func TestLargeCacheStaysWithinItsLimit(t *testing.T) {
	c := New[int, int](2 * largeCache)
	for i := range 10 * largeCache {
		c.Put(i, i, 1)
		if v, ok := c.Get(i); !ok || v != i {
			t.Fatalf("entry %d, just put: %d, %v", i, v, ok)
		}
	}
	if n := c.Len(); n > 2*largeCache+2*shards || n < largeCache/2 {
		t.Errorf("%d entries, the limit is %d", n, 2*largeCache)
	}
	c.Clear()
	if n := c.Len(); n != 0 {
		t.Errorf("%d entries after Clear", n)
	}
}

func BenchmarkGet(b *testing.B) {
	c := New[int64, *int](100_000)
	for i := range int64(50_000) {
		c.Put(i, new(int), 1)
	}
	b.ReportAllocs()
	b.RunParallel(func(p *testing.PB) {
		for i := int64(0); p.Next(); i++ {
			c.Get(i % 50_000)
		}
	})
}
