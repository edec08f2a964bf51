package roomserver

import (
	"crypto/sha256"
	"fmt"
	"testing"
	"time"
)

func TestKeyFilter(t *testing.T) {
	key := func(i int) [16]byte {
		sum := sha256.Sum256(fmt.Append(nil, i))
		return [16]byte(sum[:16])
	}
	now := time.Now()
	var f keyFilter
	if !f.enter(key(0), now) {
		t.Error("a filter that does not know all says that a key is new")
	}
	f.learn([]string{"sixteen bytes of"}, now, true)
	if !f.enter(key(0), now) || !f.has([16]byte([]byte("sixteen bytes of"))) {
		t.Error("a key that was added or learnt counts as new")
	}
	if f.enter(key(-1), now) {
		t.Error("a new key counts as known")
	}
	const n = 100_000
	for i := range n {
		f.add(key(i), now)
	}
	for i := range n {
		if !f.has(key(i)) {
			t.Fatalf("key %d of %d is lost", i, n)
		}
	}
	wrong := 0
	for i := range n {
		if f.has(key(n + i)) {
			wrong++
		}
	}
	if wrong > n/200 {
		t.Errorf("%d of %d new keys are taken for known", wrong, n)
	}
	parts := len(f.parts)
	later := now.Add(txnLifetime + time.Minute)
	for i := range f.parts[parts-1].free + 1 {
		f.add(key(2*n+i), later)
	}
	if len(f.parts) != 2 {
		t.Errorf("%d parts are left a day later, want the one before and the new one", len(f.parts))
	}
	if f.has(key(1)) || !f.has(key(2*n)) {
		t.Error("the wrong keys were let go")
	}
}
