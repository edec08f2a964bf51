package roomserver

import (
	"sync"
	"testing"
	"time"
)

func TestTransactions(t *testing.T) {
	eachServer(t, func(t *testing.T, s *Server) {
		w := newWorld(t, s, "12")
		say := func(device, id string) string {
			t.Helper()
			event, err := s.Send(ctx, w.room.ID, Draft{
				Sender: creator, Type: "m.room.message", Content: []byte(text),
				Txn: &Txn{User: creator, Device: device, Path: "send/" + w.room.ID, ID: id},
			})
			if err != nil {
				t.Error(err)
			}
			return event
		}
		first := say("A", "1")
		if again := say("A", "1"); again != first {
			t.Errorf("a repeated transaction made %s, want %s", again, first)
		}
		if other := say("B", "1"); other == first {
			t.Error("transaction ids of two devices are one")
		}
		var wg sync.WaitGroup
		results := make([]string, 20)
		for i := range results {
			wg.Go(func() { results[i] = say("A", "2") })
		}
		wg.Wait()
		for _, id := range results {
			if id != results[0] {
				t.Fatalf("parallel retries made %v", results)
			}
		}
		if n := len(w.timeline()); n == 0 || w.timeline()[n-1] != results[0] {
			t.Error("the retries left more than one event")
		}
		if e := w.event(first); e.TxnDevice != "A" || e.TxnID != "1" {
			t.Errorf("the event remembers transaction %q of device %q", e.TxnID, e.TxnDevice)
		}
	})
}

func TestTransactionsAreForgotten(t *testing.T) {
	eachServer(t, func(t *testing.T, s *Server) {
		w := newWorld(t, s, "12")
		draft := Draft{
			Sender: creator, Type: "m.room.message", Content: []byte(text),
			Txn: &Txn{User: creator, Device: "A", Path: "p", ID: "1"},
		}
		first, err := s.Send(ctx, w.room.ID, draft)
		if err != nil {
			t.Fatal(err)
		}
		sweep := func() {
			for chunk := range txnChunks {
				if err := s.forgetTxns(ctx, chunk); err != nil {
					t.Fatal(err)
				}
			}
		}
		sweep()
		if again, err := s.Send(ctx, w.room.ID, draft); again != first || err != nil {
			t.Errorf("a young transaction was forgotten: %s, %v", again, err)
		}
		now := s.now
		s.now = func() time.Time { return now().Add(txnLifetime + time.Minute) }
		sweep()
		if again, err := s.Send(ctx, w.room.ID, draft); again == first || err != nil {
			t.Errorf("an old transaction was kept: %s, %v", again, err)
		}
	})
}
