package ratelimit

import (
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// clock makes a limiter whose time is turned by hand.
func clock(cfg Config) (*Limiter, func(time.Duration)) {
	l := New(cfg)
	var now int64
	l.now = func() int64 { return now }
	return l, func(d time.Duration) { now += int64(d) }
}

// allowed counts how many of n requests pass, and returns the last advice to wait.
func allowed(l *Limiter, class Class, key string, n int) (passed int, after time.Duration) {
	for range n {
		ok, wait := l.Allow(class, key)
		if ok {
			passed++
		} else {
			after = wait
		}
	}
	return passed, after
}

func TestBurstAndRate(t *testing.T) {
	l, pass := clock(Config{Enabled: true, Message: Rate{2, 5}})
	if n, after := allowed(l, Message, "a", 8); n != 5 || after != 500*time.Millisecond {
		t.Fatalf("burst %d, wait %s", n, after)
	}
	pass(499 * time.Millisecond)
	if ok, after := l.Allow(Message, "a"); ok || after != time.Millisecond {
		t.Fatalf("allowed too early, or wait %s", after)
	}
	pass(time.Millisecond)
	if n, _ := allowed(l, Message, "a", 2); n != 1 {
		t.Fatalf("%d requests after the advised time", n)
	}
	pass(10 * time.Second)
	if n, _ := allowed(l, Message, "a", 10); n != 5 {
		t.Fatalf("a bucket refilled to %d", n)
	}
	// In the long run it is the rate, whatever is refused in between.
	pass(time.Hour)
	passed := 0
	for range 1000 {
		pass(100 * time.Millisecond)
		n, _ := allowed(l, Message, "a", 3)
		passed += n
	}
	if passed < 200 || passed > 205 {
		t.Fatalf("%d requests in 100 s at 2 a second", passed)
	}
}

func TestBucketsAreApart(t *testing.T) {
	l, _ := clock(Config{Enabled: true, Message: Rate{1, 2}, State: Rate{1, 2}})
	for _, class := range []Class{Message, State} {
		for _, key := range []string{"a", "b", ""} {
			if n, _ := allowed(l, class, key, 4); n != 2 {
				t.Errorf("%s of %q: %d", class, key, n)
			}
		}
	}
}

func TestUnlimited(t *testing.T) {
	var off *Limiter
	if New(Config{Message: Rate{1, 1}}) != nil {
		t.Error("a limiter that is turned off is not nil")
	}
	on, _ := clock(Config{Enabled: true, Message: Rate{1, 1}})
	for _, c := range []struct {
		l     *Limiter
		class Class
	}{{off, Message}, {on, None}, {on, State}, {on, classes}, {on, 0}} {
		if n, _ := allowed(c.l, c.class, "a", 100); n != 100 {
			t.Errorf("%s: %d of 100", c.class, n)
		}
	}
	if !off.ExemptAdmins() || on.ExemptAdmins() {
		t.Error("exemption of administrators")
	}
}

// TestStrangeRates: whatever is configured, time does not overflow.
func TestStrangeRates(t *testing.T) {
	for _, c := range []struct {
		rate Rate
		want int
	}{
		{Rate{1, 0}, 1}, {Rate{1, -5}, 1}, {Rate{1e-30, 10}, 1}, {Rate{1, math.MaxInt}, 100}, {Rate{1e30, 1}, 1}, {Rate{-1, 1}, 100},
		{Rate{0.5 / 3600, 7}, 7},
	} {
		l, pass := clock(Config{Enabled: true, Login: c.rate})
		pass(365 * 24 * time.Hour)
		if n, _ := allowed(l, Login, "a", 100); n != c.want {
			t.Errorf("%v: %d of 100, want %d", c.rate, n, c.want)
		}
	}
}

// TestRealClients: what well-behaved clients do passes with the defaults.
func TestRealClients(t *testing.T) {
	for _, c := range []struct {
		what  string
		class Class
		burst int           // at once
		every time.Duration // and then one each
	}{
		{"a call's delayed leave event is restarted each second", Delayed, 20, time.Second},
		{"call keys go to 30 devices", ToDevice, 30, time.Second},
		{"a bot answers", Message, 50, 200 * time.Millisecond},
		{"a client opens an account with hundreds of rooms", Read, 400, 50 * time.Millisecond},
		{"typing notices and receipts", Ephemeral, 20, 200 * time.Millisecond},
		{"a busy room wakes a long-poll", Sync, 20, 100 * time.Millisecond},
	} {
		l, pass := clock(DefaultConfig())
		if n, _ := allowed(l, c.class, "@a:test", c.burst); n != c.burst {
			t.Errorf("%s: burst of %d passes %d", c.what, c.burst, n)
		}
		for i := range 1000 {
			pass(c.every)
			if ok, _ := l.Allow(c.class, "@a:test"); !ok {
				t.Errorf("%s: refused after %d", c.what, i)
				break
			}
		}
	}
	// A guesser gets few passwords a day.
	l, pass := clock(DefaultConfig())
	guesses := 0
	for range 24 * 3600 {
		pass(time.Second)
		if ok, _ := l.Allow(LoginAccount, "@a:test"); ok {
			guesses++
		}
	}
	if guesses > 5000 {
		t.Errorf("%d guesses a day", guesses)
	}
}

// TestEveryClassIsConfigured: no class is forgotten by the configuration, its defaults or its name.
func TestEveryClassIsConfigured(t *testing.T) {
	cfg := DefaultConfig()
	names := make(map[string]bool)
	for class, rate := range cfg.rates() {
		c := Class(class)
		if c == 0 || c == None {
			continue
		}
		if rate.PerSecond <= 0 || rate.Burst < 1 {
			t.Errorf("%s has no default", c)
		}
		if c.String() == "" || names[c.String()] || !c.Valid() {
			t.Errorf("class %d is called %q", class, c)
		}
		names[c.String()] = true
	}
	if Class(0).Valid() || classes.Valid() || classes.String() != fmt.Sprintf("class(%d)", classes) {
		t.Error("a class that is none is valid")
	}
}

func TestMemoryIsBounded(t *testing.T) {
	l, pass := clock(Config{Enabled: true, Message: Rate{1, 2}})
	allowed(l, Message, "victim", 3)
	count := func() (n int) {
		for i := range l.shards {
			n += len(l.shards[i].full)
		}
		return n
	}
	for i := range shards * shardBuckets * 5 / 4 {
		l.Allow(Message, fmt.Sprint("stranger", i))
	}
	if n := count(); n > shards*shardBuckets || n < shards*shardBuckets/2 {
		t.Errorf("%d buckets", n)
	}
	// Full buckets go first, and alone if that is enough.
	pass(time.Minute)
	s := shard{full: make(map[bucketKey]int64)}
	for i := range shardBuckets {
		full := l.now() + int64(time.Second)
		if i%2 == 0 {
			full = l.now()
		}
		s.full[bucketKey{Message, fmt.Sprint(i)}] = full
	}
	s.put(bucketKey{Message, "new"}, l.now()+1, l.now())
	if len(s.full) != shardBuckets/2+1 {
		t.Errorf("%d buckets stay beside %d that are full", len(s.full), shardBuckets/2)
	}
	for k, full := range s.full {
		if full <= l.now() {
			t.Errorf("the full bucket of %s was kept", k.key)
		}
	}
}

func TestAddrKey(t *testing.T) {
	for addr, want := range map[string]string{
		"1.2.3.4": "1.2.3.4", "2001:db8:1:2:3:4:5:6": "2001:db8:1:2::/64", "fe80::1%eth0": "fe80::/64",
		"::ffff:1.2.3.4": "::ffff:1.2.3.4", "": "", "no address": "no address", "a:b": "a:b",
	} {
		if got := AddrKey(addr); got != want {
			t.Errorf("%s: %s, want %s", addr, got, want)
		}
	}
	if AddrKey("2001:db8::1") != AddrKey("2001:db8::ffff") {
		t.Error("one network has two keys")
	}
}

func TestConcurrency(t *testing.T) {
	l, _ := clock(Config{Enabled: true, Message: Rate{1, 100}})
	var passed atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			n, _ := allowed(l, Message, "a", 100)
			passed.Add(int64(n))
			for i := range 2000 {
				l.Allow(Message, fmt.Sprint(i))
			}
		})
	}
	wg.Wait()
	if passed.Load() != 100 {
		t.Errorf("%d of a burst of 100", passed.Load())
	}
}

func BenchmarkAllow(b *testing.B) {
	cfg := DefaultConfig()
	cfg.Message = Rate{1e9, 1 << 20}
	l := New(cfg)
	keys := make([]string, 1000)
	for i := range keys {
		keys[i] = fmt.Sprintf("@user%d:example.org", i)
	}
	b.Run("limited", func(b *testing.B) {
		b.ReportAllocs()
		i := 0
		for b.Loop() {
			l.Allow(Message, keys[i%1000])
			i++
		}
	})
	b.Run("parallel", func(b *testing.B) {
		b.RunParallel(func(pb *testing.PB) {
			for i := 0; pb.Next(); i++ {
				l.Allow(Message, keys[i%1000])
			}
		})
	})
	b.Run("off", func(b *testing.B) {
		var l *Limiter
		for b.Loop() {
			l.Allow(Message, "a")
		}
	})
}
