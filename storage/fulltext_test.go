package storage_test

import (
	"context"
	"fmt"
	"math"
	"slices"
	"testing"

	"github.com/myelin-im/myelin/storage"
	"github.com/myelin-im/myelin/storage/storagetest"
)

var wordIndex = storage.DeclareTerms("words", storage.Put)

// matching returns the rows of the test's index that match, newest first.
func matching(t testing.TB, db *storage.DB, q storage.TermQuery, limit int) (ids []int64) {
	t.Helper()
	err := db.Read(context.Background(), func(tx *storage.Tx) error {
		ids = nil
		numbers, query := tx.Newest(wordIndex, q)
		rows := tx.Query(`SELECT id FROM (`+numbers+`) m ORDER BY id DESC`, query, int64(math.MaxInt64), int64(limit))
		var id int64
		for rows.Next() {
			rows.Scan(&id)
			ids = append(ids, id)
		}
		return rows.Close()
	})
	if err != nil {
		t.Fatal(err)
	}
	return ids
}

func setTerms(t testing.TB, db *storage.DB, terms map[int64]string) {
	t.Helper()
	u := &storage.Unit{}
	for id, text := range terms {
		u.Add(wordIndex, id, storage.Text(text))
	}
	if _, err := do(db, u); err != nil {
		t.Fatal(err)
	}
}

func TestTerms(t *testing.T) {
	storagetest.Each(t, []storage.Schema{testSchema}, func(t *testing.T, db *storage.DB) {
		const big = 1 << 50
		setTerms(t, db, map[int64]string{
			1: "_a hello world", 2: "_b hello you", 3: "_a 黒猫 猫 été", big: "_c worlds or and not near hello hello",
		})
		word := func(list ...string) (terms []storage.Term) {
			for _, text := range list {
				terms = append(terms, storage.Term{Text: text})
			}
			return terms
		}
		check := func(want []int64, q ...[]storage.Term) {
			t.Helper()
			if got := matching(t, db, q, 10); !slices.Equal(got, want) {
				t.Errorf("%v: rows %v, want %v", q, got, want)
			}
		}
		check([]int64{big, 2, 1}, word("hello"))
		check([]int64{2, 1}, word("hello"), word("_a", "_b"))
		check([]int64{1}, word("world"))
		check([]int64{big, 1}, []storage.Term{{Text: "wor", Prefix: true}})
		check([]int64{3}, []storage.Term{{Text: "猫", Prefix: true}}, word("_a"))
		check([]int64{3}, word("été"))
		check([]int64{big}, word("not"), word("or"), word("and"), word("near"))
		check(nil, word("_d"))

		setTerms(t, db, map[int64]string{1: "_a goodbye", 2: ""})
		check([]int64{big}, word("hello"))
		check([]int64{1}, word("goodbye"))
		if _, err := do(db, unit(func(u *storage.Unit) { u.Delete(wordIndex, big) })); err != nil {
			t.Fatal(err)
		}
		check(nil, word("hello"))
		setTerms(t, db, map[int64]string{big: "back"})
		check([]int64{big}, word("back"))
	})
}

// Rows of an index are written by units, alone and many at once, and replace what was there.
func TestTermsOfUnits(t *testing.T) {
	storagetest.Each(t, []storage.Schema{testSchema}, func(t *testing.T, db *storage.DB) {
		unit := func(ids ...int64) *storage.Unit {
			u := &storage.Unit{}
			for _, id := range ids {
				u.Add(wordIndex, id, storage.Text(fmt.Sprintf("all n%d", id)))
			}
			return u
		}
		check := func(term string, want ...int64) {
			t.Helper()
			if got := matching(t, db, storage.TermQuery{{{Text: term}}}, 10); !slices.Equal(got, want) {
				t.Errorf("%q: rows %v, want %v", term, got, want)
			}
		}
		for _, u := range []*storage.Unit{unit(1), unit(2, 3, 4)} {
			if _, err := do(db, u); err != nil {
				t.Fatal(err)
			}
		}
		check("all", 4, 3, 2, 1)
		check("n3", 3)

		release := hold(t, db)
		change := &storage.Unit{}
		change.Add(wordIndex, int64(3), storage.Text("other"))
		change.Delete(wordIndex, int64(1))
		outcome := make(chan error, 2)
		for _, u := range []*storage.Unit{change, unit(5, 6)} {
			u.Done = func(_ int64, err error) { outcome <- err }
			db.Append(u)
		}
		release()
		for range 2 {
			if err := <-outcome; err != nil {
				t.Fatal(err)
			}
		}
		check("all", 6, 5, 4, 2)
		check("n3")
		check("other", 3)
		check("n1")
	})
}

// The newest matches are found wherever they stand, also if there are fewer among the newest rows than were asked for.
func TestNewest(t *testing.T) {
	storagetest.Each(t, []storage.Schema{testSchema}, func(t *testing.T, db *storage.DB) {
		terms := map[int64]string{}
		for id := int64(1); id <= 10_000; id++ {
			terms[id] = "always"
			if id%4000 == 1 { // 1, 4001, 8001
				terms[id] = "always seldom"
			}
		}
		setTerms(t, db, terms)
		for _, c := range []struct {
			term  string
			limit int
			want  []int64
		}{
			{"always", 3, []int64{10_000, 9_999, 9_998}},
			{"seldom", 1, []int64{8001}},
			{"seldom", 3, []int64{8001, 4001, 1}},
			{"seldom", 9, []int64{8001, 4001, 1}},
			{"never", 9, nil},
		} {
			if got := matching(t, db, storage.TermQuery{{{Text: c.term}}}, c.limit); !slices.Equal(got, c.want) {
				t.Errorf("newest %d with %q: %v, want %v", c.limit, c.term, got, c.want)
			}
		}
		err := db.Read(t.Context(), func(tx *storage.Tx) error {
			numbers, query := tx.Newest(wordIndex, storage.TermQuery{{{Text: "seldom"}}})
			var id int64
			if found, err := tx.Get(numbers, []any{query, int64(8001), int64(1)}, &id); err != nil || !found || id != 4001 {
				t.Errorf("newest below 8001: %d, %v", id, err)
			}
			some, query := tx.Some(wordIndex, storage.TermQuery{{{Text: "seldom"}}})
			var n int64
			if _, err := tx.Get(`SELECT count(*) FROM (`+some+`) m`, []any{query, int64(9)}, &n); err != nil || n != 3 {
				t.Errorf("some: %d, %v", n, err)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	})
}

// BenchmarkTerms asks for the newest 1,000 of 100,000 rows that have a term, of which half is in one of two rooms.
func BenchmarkTerms(b *testing.B) {
	for _, dialect := range storagetest.Dialects {
		b.Run(dialect.String(), func(b *testing.B) {
			db := storagetest.Open(b, dialect, testSchema)
			for i := int64(0); i < 100_000; {
				terms := map[int64]string{}
				for range 1000 {
					i++
					terms[i<<20] = fmt.Sprintf("_r%d always h%d c%d m%d x%d", i%2, i%10, i%100, i%1000, i)
				}
				setTerms(b, db, terms)
			}
			rooms := []storage.Term{{Text: "_r0"}, {Text: "_r7"}}
			for _, q := range []struct{ name, term string }{{"all", "always"}, {"tenth", "h4"}, {"hundredth", "c4"}, {"rare", "x4"}} {
				b.Run(q.name, func(b *testing.B) {
					for b.Loop() {
						matching(b, db, storage.TermQuery{{{Text: q.term}}, rooms}, 1000)
					}
				})
			}
		})
	}
}
