package cache

import "testing"

func TestCacheKeepsWhatIsUsed(t *testing.T) {
	c := New[int, int](100 * (overhead + 10))
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
	c := New[string, int](1 << 20)
	c.Put("a", 1, 10)
	c.Put("a", 2, 20)
	if v, _ := c.Get("a"); v != 2 || c.size != 20+overhead {
		t.Errorf("value %d, size %d", v, c.size)
	}
	if v := c.GetOrPut("a", 3, 5); v != 2 {
		t.Errorf("GetOrPut replaced the value: %d", v)
	}
	c.Delete("a")
	c.Delete("a")
	if _, ok := c.Get("a"); ok || c.size != 0 {
		t.Errorf("still there, size %d", c.size)
	}
	if v := c.GetOrPut("a", 3, 5); v != 3 {
		t.Errorf("GetOrPut: %d", v)
	}
	// An entry larger than the cache is accepted and soon forgotten.
	c.Put("huge", 1, 1<<21)
	c.Put("b", 1, 1<<20)
	if c.Len() > 2 {
		t.Errorf("%d entries", c.Len())
	}
}
