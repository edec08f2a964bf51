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

// crashURL tells a child process of TestCrash which database to write.
const crashURL = "MYELIN_TEST_CRASH_URL"

// TestCrash kills a process while it writes, twice, and looks for everything it was answered.
func TestCrash(t *testing.T) {
	if url := os.Getenv(crashURL); url != "" {
		writeUntilKilled(t, url)
		return
	}
	eachURL(t, func(t *testing.T, url string) {
		last := int64(0)
		for range 2 {
			answered := killWriter(t, url)
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
			if names := number(t, db, `SELECT count(*) FROM names`); names != events {
				t.Errorf("%d events, %d other rows: half a unit", events, names)
			}
			closeDB(t, db)
		}
	})
}

// killWriter runs a child that writes, kills it, and returns the position of each event it was answered.
func killWriter(t *testing.T, url string) map[int64]int64 {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestCrash$", "-test.count=1")
	cmd.Env = append(os.Environ(), crashURL+"="+url)
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
	db, err := storage.Open(t.Context(), storage.Options{URL: url}, testSchema)
	if err != nil {
		t.Fatal(err)
	}
	ids := db.IDs("event")
	for range 20 {
		go func() {
			for {
				nid, err := ids.Next(t.Context())
				if err != nil {
					t.Error(err)
					return
				}
				u := &storage.Unit{Positions: 1}
				u.Add(events, nid, 1, storage.Pos(1), strconv.FormatInt(nid, 10), "{}")
				u.Add(names, fmt.Sprint(nid), true, nil)
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
