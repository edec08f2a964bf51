package delayed

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/myelin-im/myelin/accounts"
	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/storage"
	"github.com/myelin-im/myelin/storage/storagetest"
)

const alice = "@alice:hs"

// world is delayed events with a clock that stands still and rooms that only take notice.
type world struct {
	*API
	t     *testing.T
	clock time.Time

	mu   sync.Mutex
	sent []string // types of events; guarded by mu, as is fail
	fail error
}

func each(t *testing.T, fn func(t *testing.T, w *world)) {
	storagetest.Each(t, []storage.Schema{roomserver.Schema, accounts.Schema, Schema}, func(t *testing.T, db *storage.DB) {
		log := logrus.New()
		log.SetOutput(io.Discard)
		w := &world{t: t, clock: time.UnixMilli(1_700_000_000_000)}
		w.API = New(Limits{MaxDelay: 24 * time.Hour, MaxScheduled: 1000}, Deps{DB: db, Send: w.take, Log: logrus.NewEntry(log), Now: func() time.Time { return w.clock }})
		err := db.Write(t.Context(), func(tx *storage.Tx) error {
			_, err := tx.Exec(`INSERT INTO accounts (user_id, kind, admin, locked, suspended, erased, created_ts) VALUES ($1, 0, $2, $2, $2, $2, 0)`, alice, false)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		fn(t, w)
	})
}

// take is the rooms: it writes what stands beside the event, unless it fails.
func (w *world) take(ctx context.Context, _ string, d roomserver.Draft) (string, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.fail != nil {
		return "", w.fail
	}
	u := &storage.Unit{}
	d.Beside(u, "$"+d.Type)
	done := make(chan error, 1)
	u.Done = func(_ int64, err error) { done <- err }
	w.db.Append(u)
	if err := <-done; err != nil {
		return "", fmt.Errorf("write: %w", err)
	}
	w.sent = append(w.sent, d.Type)
	return "$" + d.Type, nil
}

func (w *world) later(typ string, delay time.Duration) string {
	w.t.Helper()
	id, err := w.Schedule(w.t.Context(), &httpapi.Caller{UserID: alice}, "!room:hs", roomserver.Draft{Sender: alice, Type: typ, Content: []byte(`{}`)}, delay.Milliseconds())
	if err != nil {
		w.t.Fatal(err)
	}
	return id
}

func (w *world) find(id string) (e *event) {
	w.t.Helper()
	err := w.db.Read(w.t.Context(), func(tx *storage.Tx) (err error) {
		e, err = find(tx, id)
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return e
}

// pass lets time pass and sends what is due.
func (w *world) pass(d time.Duration) (pause time.Duration) {
	w.t.Helper()
	w.clock = w.clock.Add(d)
	pause, err := w.sendDue(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	return pause
}

func TestOrder(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		var want []string
		for i := range 150 { // more than a batch
			w.later(fmt.Sprint(200-i), time.Duration(200-i)*time.Second)
			want = append(want, fmt.Sprint(51+i))
		}
		if pause := w.pass(50 * time.Second); len(w.sent) > 0 || pause != time.Second {
			t.Errorf("too early: %v, then a pause of %v", w.sent, pause)
		}
		w.pass(time.Hour)
		if !slices.Equal(w.sent, want) {
			t.Errorf("sent %v", w.sent)
		}
	})
}

// TestFailures tries again where the server failed, and only for some time; a refusal ends the event.
func TestFailures(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		id := w.later("retried", time.Second)
		w.fail = errors.New("the disk is away")
		if pause := w.pass(time.Second); w.find(id).finalised != nil || pause != retryEvery {
			t.Errorf("ended by a failure of the server, or a pause of %v", pause)
		}
		other := w.later("other", time.Second)
		w.fail = nil
		w.pass(time.Second)
		if w.find(id).finalised != nil || !w.find(other).sent() {
			t.Error("what failed waits, and holds nothing else up")
		}
		w.pass(retryEvery)
		if !w.find(id).sent() {
			t.Error("not tried again")
		}
		id = w.later("given up", time.Second)
		w.fail = errors.New("the disk is away")
		w.pass(time.Second)
		w.pass(retryFor + time.Second)
		if e := w.find(id); !e.cancelled() || len(e.error) == 0 {
			t.Errorf("not given up: %+v", e)
		}
		id = w.later("refused", time.Second)
		w.fail = mxerr.Forbidden("no")
		w.pass(time.Second)
		if e := w.find(id); !e.cancelled() || string(e.error) != `{"errcode":"M_FORBIDDEN","error":"no"}` {
			t.Errorf("not refused: %s", e.error)
		}
		if len(w.failed) > 0 {
			t.Errorf("%d events are remembered", len(w.failed))
		}
	})
}

// TestRaces has an event change between its being read and its being sent.
func TestRaces(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		id := w.later("restarted", time.Second)
		old := w.find(id)
		w.clock = w.clock.Add(time.Second)
		if err := w.restart(ctx, old); err != nil {
			t.Fatal(err)
		}
		if err := w.fire(ctx, old); !errors.Is(err, errChanged) || len(w.sent) > 0 {
			t.Errorf("sent although it was restarted: %v, %v", err, w.sent)
		}
		if err := w.cancel(ctx, old); err != nil {
			t.Fatal(err)
		}
		if err := w.sendNow(ctx, old); !errors.Is(err, errConflict) || len(w.sent) > 0 {
			t.Errorf("sent although it was cancelled: %v, %v", err, w.sent)
		}
	})
}

func TestPurge(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		old := w.later("old", time.Second)
		w.pass(time.Second)
		w.clock = w.clock.Add(finalisedLife)
		waits := w.later("waits", 24*time.Hour)
		var ids []string
		for i := range maxFinalised + 5 {
			ids = append(ids, w.later(fmt.Sprint(i), time.Second))
			w.pass(time.Second)
		}
		w.clock = w.clock.Add(time.Second)
		if err := w.purge(t.Context()); err != nil {
			t.Fatal(err)
		}
		for id, stays := range map[string]bool{old: false, ids[4]: false, ids[5]: true, ids[len(ids)-1]: true, waits: true} {
			if (w.find(id) != nil) != stays {
				t.Errorf("an event is there: %t, want %t", !stays, stays)
			}
		}
	})
}
