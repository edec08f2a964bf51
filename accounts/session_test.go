package accounts

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/myelin-im/myelin/storage"
	"github.com/myelin-im/myelin/storage/storagetest"
)

func TestTokenCacheIsBounded(t *testing.T) {
	c := newTokenCache()
	hot, _ := hashToken("hot")
	c.put(&hot, &session{}, c.before())
	for i := range 5 * maxYoung {
		h, _ := hashToken(fmt.Sprint(i))
		c.put(&h, &session{}, c.before())
		if i%100 == 0 && c.get(&hot) == nil {
			t.Fatalf("a session in use was dropped after %d others", i)
		}
	}
	if n := len(c.young) + len(c.old); n > 2*maxYoung {
		t.Errorf("%d sessions are kept", n)
	}
	cold, _ := hashToken("0")
	if c.get(&cold) != nil {
		t.Error("a session that nobody uses is kept")
	}
}

func TestForgottenWhileReading(t *testing.T) {
	c := newTokenCache()
	h, _ := hashToken("t")
	s := &session{}
	s.caller.UserID = "@a:b"
	before := c.before()
	c.forget("@a:b")
	c.put(&h, s, before)
	if c.get(&h) != nil {
		t.Error("what was read before a change is kept after it")
	}
	c.put(&h, s, c.before())
	if c.get(&h) != s {
		t.Error("what was read after the change is not kept")
	}
	c.forget("@a:b")
	if c.get(&h) != nil {
		t.Error("a forgotten session is remembered")
	}
}

func TestPHC(t *testing.T) {
	ctx := context.Background()
	h := newHasher(cheap)
	phc, err := h.hash(ctx, "pass")
	if err != nil {
		t.Fatal(err)
	}
	if ok, outdated, err := h.verify(ctx, phc, "pass"); !ok || outdated || err != nil {
		t.Errorf("verify: %v, %v, %v", ok, outdated, err)
	}
	if ok, _, err := h.verify(ctx, phc, "Pass"); ok || err != nil {
		t.Errorf("verify another password: %v, %v", ok, err)
	}
	// A vector of the reference implementation: echo -n password | argon2 somesalt -id -t 2 -m 16 -p 1 -l 32.
	const known = "$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc"
	if ok, outdated, err := h.verify(ctx, known, "password"); !ok || !outdated || err != nil {
		t.Errorf("verify the reference's hash: %v, %v, %v", ok, outdated, err)
	}
	for _, bad := range []string{"", "$2b$12$x", "$argon2id$v=18$m=8,t=1,p=1$AA$AA", "$argon2id$v=19$m=8,t=0,p=1$AA$AA",
		"$argon2id$v=19$m=8,t=1,p=1$!$AA", strings.TrimSuffix(known, "c")} {
		if _, _, err := h.verify(ctx, bad, "x"); err == nil {
			t.Errorf("%q is verified", bad)
		}
	}
}

func TestHashingWaitsAndGivesUp(t *testing.T) {
	h := newHasher(Hashing{MemoryKiB: 8, Iterations: 1, Parallel: 1})
	h.slots <- struct{}{}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := h.hash(ctx, "x"); err == nil {
		t.Error("does not wait for its turn")
	}
	h.waiting.Store(maxWaiting)
	if _, err := h.hash(context.Background(), "x"); err == nil {
		t.Error("waits although too many do")
	}
	if n := h.waiting.Load(); n != maxWaiting {
		t.Errorf("%d are waiting", n)
	}
}

func TestRandomName(t *testing.T) {
	seen := map[string]bool{}
	for range 100 {
		n := randomName("ab", 64)
		if len(n) != 64 || strings.Trim(n, "ab") != "" || seen[n] {
			t.Fatalf("randomName = %q", n)
		}
		seen[n] = true
	}
}

func BenchmarkHash(b *testing.B) {
	h := newHasher(Hashing{})
	for b.Loop() {
		if _, err := h.hash(context.Background(), "password"); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAuthenticate(b *testing.B) {
	db := storagetest.Open(b, storage.SQLite, Schema)
	s := newServer(b, db)
	token := s.user("alice")
	ctx := context.Background()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.Authenticate(ctx, token, nil); err != nil {
			b.Fatal(err)
		}
	}
}
