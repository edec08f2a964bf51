//go:build unix

package storage_test

import (
	"fmt"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/myelin-im/myelin/storage"
	"github.com/myelin-im/myelin/storage/storagetest"
)

// benchJSON is about the size of a text message's event.
var benchJSON = []byte(`{"type":"m.room.message","content":{"body":"` + strings.Repeat("x", 700) + `"}}`)

// message is a unit of four rows, like a message sent to a room: the event, a row of the room that
// every message overwrites, the transaction id, and a marker.
func message(nid int64, room int64) *storage.Unit {
	u := &storage.Unit{Positions: 1}
	u.Add(events, nid, room, storage.Pos(1), fmt.Sprintf("$%043d", nid), benchJSON)
	u.Add(rooms, room, storage.Pos(1), "note")
	u.Add(names, fmt.Sprintf("@user:example.org/DEVICE/%d", nid), true, nil)
	u.Add(names, fmt.Sprintf("marker %d", nid), false, nil)
	u.Notices = []storage.Notice{{Pos: 1, Kind: storage.Event, Room: room}}
	return u
}

func benchEach(b *testing.B, fn func(b *testing.B, db *storage.DB)) {
	for _, d := range storagetest.Dialects {
		b.Run(d.String(), func(b *testing.B) {
			db := storagetest.Open(b, d, testSchema)
			b.ReportAllocs()
			before := cpuTime()
			fn(b, db)
			b.ReportMetric(float64((cpuTime()-before).Microseconds())/float64(b.N), "cpu-µs/op")
		})
	}
}

// cpuTime is what this process used, the test's own work and setting up included.
func cpuTime() time.Duration {
	var r syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &r)
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

func BenchmarkAppendAlone(b *testing.B) {
	benchEach(b, func(b *testing.B, db *storage.DB) {
		nid := int64(0)
		for b.Loop() {
			nid++
			if _, err := do(db, message(nid, 1)); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkAppend50(b *testing.B) {
	benchEach(b, func(b *testing.B, db *storage.DB) {
		var nid atomic.Int64
		b.SetParallelism(25)
		b.RunParallel(func(pb *testing.PB) {
			room := nid.Add(1)
			for pb.Next() {
				if _, err := do(db, message(nid.Add(1)+1000, room)); err != nil {
					b.Error(err)
					return
				}
			}
		})
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "units/s")
	})
}

func BenchmarkWrite50(b *testing.B) {
	benchEach(b, func(b *testing.B, db *storage.DB) {
		var nid atomic.Int64
		b.SetParallelism(25)
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				id := nid.Add(1)
				err := db.Write(b.Context(), func(tx *storage.Tx) error {
					pos, err := tx.Position()
					if err != nil {
						return err
					}
					_, err = tx.Exec(`INSERT INTO rooms (room, last, note) VALUES ($1, $2, $3)`, id, pos, "x")
					return err
				})
				if err != nil {
					b.Error(err)
					return
				}
			}
		})
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "units/s")
	})
}

// fillEvents writes n events in rooms of 100.
func fillEvents(b *testing.B, db *storage.DB, n int) {
	b.Helper()
	done := make(chan error, n)
	for i := range n {
		u := message(int64(i), int64(i/100))
		u.Done = func(_ int64, err error) { done <- err }
		db.Append(u)
	}
	for range n {
		if err := <-done; err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkPointRead(b *testing.B) {
	benchEach(b, func(b *testing.B, db *storage.DB) {
		fillEvents(b, db, 10000)
		var json []byte
		var pos int64
		i := 0
		for b.Loop() {
			i = (i + 7919) % 10000
			err := db.Read(b.Context(), func(tx *storage.Tx) error {
				_, err := tx.Get(`SELECT pos, json FROM events WHERE nid = $1`, []any{i}, &pos, &json)
				return err
			})
			if err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkQueryInRead(b *testing.B) {
	benchEach(b, func(b *testing.B, db *storage.DB) {
		fillEvents(b, db, 10000)
		var json []byte
		var pos int64
		i := 0
		err := db.Read(b.Context(), func(tx *storage.Tx) error {
			for b.Loop() {
				i = (i + 7919) % 10000
				if _, err := tx.Get(`SELECT pos, json FROM events WHERE nid = $1`, []any{i}, &pos, &json); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
	})
}

func BenchmarkRange50(b *testing.B) {
	benchEach(b, func(b *testing.B, db *storage.DB) {
		fillEvents(b, db, 10000)
		i := 0
		for b.Loop() {
			i = (i + 3967) % 9900
			n := 0
			err := db.Read(b.Context(), func(tx *storage.Tx) error {
				rows := tx.Query(`SELECT nid, pos, json FROM events WHERE pos > $1 ORDER BY pos LIMIT $2`, i, 50)
				for rows.Next() {
					var nid, pos int64
					var json []byte
					rows.Scan(&nid, &pos, &json)
					n++
				}
				return rows.Close()
			})
			if err != nil || n != 50 {
				b.Fatal(n, err)
			}
		}
	})
}
