package crash

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/myelin-im/myelin/storage"
	"github.com/myelin-im/myelin/storage/storagetest"
	"github.com/myelin-im/myelin/test/harness"
)

const (
	// writers send messages to devices, each in an order of its own.
	writers = 20
	// receivers are devices that sync meanwhile.
	receivers = 3
)

// writer sends numbered messages to a device, one after the other.
type writer struct {
	*harness.Client
	to   *receiver
	next int // the first that was not answered
}

func (w *writer) send() (*harness.Answer, error) {
	body := harness.J{"messages": harness.J{w.to.UserID: harness.J{w.to.DeviceID: harness.J{"body": fmt.Sprintf("%s %d", w.UserID, w.next)}}}}
	return w.Send("PUT", harness.Path("/sendToDevice/m.test/%s", fmt.Sprint("t", w.next)), body)
}

// run sends until the server does not answer. The message in flight is sent again by the next run.
func (w *writer) run(t *testing.T) {
	for {
		a, err := w.send()
		if err != nil {
			return
		}
		if a.Status != 200 {
			t.Errorf("send: %v", a)
			return
		}
		w.next++
	}
}

// receiver is a device that acknowledges what it got by the next token, and remembers it.
type receiver struct {
	*harness.Client
	since string
	got   []string
}

// sync asks once, and tells whether there was an answer with messages.
func (r *receiver) sync(t *testing.T) (answered, more bool) {
	a, err := r.Send("GET", harness.Path("/sync?timeout=100&since=")+r.since, nil)
	if err != nil {
		return false, false
	}
	if a.Status != 200 {
		t.Errorf("sync: %v", a)
		return false, false
	}
	events := a.JSON.Get("to_device.events").Array()
	for _, e := range events {
		r.got = append(r.got, e.Get("content.body").Str)
	}
	r.since = a.JSON.Get("next_batch").Str
	return true, len(events) > 0
}

// TestKillWithMessagesToDevices kills a server while devices send to each other. What was answered arrives once, in the
// order of its sender, and nothing else does.
func TestKillWithMessagesToDevices(t *testing.T) {
	program := harness.Build(t)
	for _, dialect := range storagetest.Dialects {
		t.Run(dialect.String(), func(t *testing.T) { testKillToDevice(t, program, dialect) })
	}
}

func testKillToDevice(t *testing.T, program string, dialect storage.Dialect) {
	p := harness.StartProcess(t, program, dialect)
	devices := make([]*receiver, receivers)
	for i := range devices {
		devices[i] = &receiver{Client: p.Register(t, fmt.Sprint("receiver", i))}
		devices[i].since = devices[i].Sync(nil).Get("next_batch").Str
	}
	all := make([]*writer, writers)
	for i := range all {
		all[i] = &writer{Client: p.Register(t, fmt.Sprint("writer", i)), to: devices[i%receivers]}
	}
	for range kills {
		var group sync.WaitGroup
		for _, w := range all {
			group.Go(func() { w.run(t) })
		}
		for _, r := range devices {
			group.Go(func() {
				for answered := true; answered; {
					answered, _ = r.sync(t)
				}
			})
		}
		time.Sleep(lifetime)
		p.Kill()
		group.Wait()
		p.Run()
	}
	for _, w := range all { // what was in flight at the last kill
		if a, err := w.send(); err != nil || a.Status != 200 {
			t.Fatalf("send again: %v, %v", a, err)
		}
		w.next++
	}
	for _, r := range devices {
		for more := true; more; {
			_, more = r.sync(t)
		}
	}
	total := 0
	for _, w := range all {
		var got []string
		for _, body := range w.to.got {
			if strings.HasPrefix(body, w.UserID+" ") {
				got = append(got, body)
			}
		}
		want := make([]string, w.next)
		for i := range want {
			want[i] = fmt.Sprintf("%s %d", w.UserID, i)
		}
		if !slices.Equal(got, want) {
			t.Errorf("of %d messages of %s, %d arrived, or in another order", len(want), w.UserID, len(got))
		}
		total += len(want)
	}
	t.Logf("%d messages", total)
	p.End()
}
