package storage_test

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"testing"
	"time"

	"github.com/myelin-im/myelin/storage"
	"github.com/myelin-im/myelin/storage/storagetest"
)

// crashURL and crashWriters tell a child process of TestCrash which database to write, and how many at a time.
const (
	crashURL     = "MYELIN_TEST_CRASH_URL"
	crashWriters = "MYELIN_TEST_CRASH_WRITERS"
)

// TestCrash kills processes while they write, and looks for everything it was answered.
func TestCrash(t *testing.T) {
	if url := os.Getenv(crashURL); url != "" {
		writeUntilKilled(t, url)
		return
	}
	eachURL(t, func(t *testing.T, url string) {
		last := int64(0)
		for _, writers := range []int{20, 1, 20, 1} {
			answered := killWriter(t, url, writers)
			if len(answered) == 0 {
				t.Fatal("the child wrote nothing")
			}
			db := storagetest.OpenURL(t, url, testSchema)
			for nid, pos := range answered {
				if n := number(t, db, `SELECT count(*) FROM events WHERE nid = $1 AND pos = $2`, nid, pos); n != 1 {
					t.Fatalf("event %d was answered and is not at position %d", nid, pos)
				}
				last = max(last, pos)
			}
			events, top := number(t, db, `SELECT count(*) FROM events`), number(t, db, `SELECT max(pos) FROM events`)
			if db.Head() != top || events != top || top < last {
				t.Errorf("head %d, last position %d, %d events, last answered %d", db.Head(), top, events, last)
			}
			if rooms := number(t, db, `SELECT count(*) FROM rooms`); rooms != events {
				t.Errorf("%d events, %d other rows: half a unit", events, rooms)
			}
			closeDB(t, db)
		}
	})
}

// killWriter runs a child that writes, kills it, and returns the position of each event it was answered.
func killWriter(t *testing.T, url string, writers int) map[int64]int64 {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestCrash$", "-test.count=1")
	cmd.Env = append(os.Environ(), crashURL+"="+url, crashWriters+"="+strconv.Itoa(writers))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	answered := map[int64]int64{}
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if len(answered) == 0 {
			time.AfterFunc(150*time.Millisecond, func() { cmd.Process.Kill() })
		}
		var nid, pos int64
		if n, _ := fmt.Sscanf(lines.Text(), "answered %d %d.", &nid, &pos); n == 2 {
			answered[nid] = pos
		}
	}
	cmd.Wait()
	return answered
}

func writeUntilKilled(t *testing.T, url string) {
	db, err := storage.Open(t.Context(), storage.Options{URL: url, Exclusive: true}, testSchema)
	if err != nil {
		t.Fatal(err)
	}
	writers, err := strconv.Atoi(os.Getenv(crashWriters))
	if err != nil {
		t.Fatal(err)
	}
	ids := db.IDs("event")
	for range writers {
		go func() {
			for {
				nid, err := ids.Next(t.Context())
				if err != nil {
					t.Error(err)
					return
				}
				u := &storage.Unit{Positions: 1, Fresh: true}
				u.Add(newEvents, nid, 1, storage.Pos(1), strconv.FormatInt(nid, 10), "{}")
				u.Add(rooms, nid, 1, "note")
				base, err := do(db, u)
				if err != nil {
					t.Error(err)
					return
				}
				fmt.Fprintf(os.Stdout, "answered %d %d.\n", nid, base+1)
			}
		}()
	}
	time.Sleep(time.Minute)
}
