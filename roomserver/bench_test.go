package roomserver_test

import (
	"context"
	"encoding/json"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/storage"
	"github.com/myelin-im/myelin/storage/storagetest"
)

// benchSend measures sends by 50 goroutines (or one) into a number of rooms.
func benchSend(b *testing.B, senders, rooms int) {
	for _, dialect := range []storage.Dialect{storage.SQLite, storage.PostgreSQL} {
		b.Run(dialect.String(), func(b *testing.B) {
			s := newServer(b, storagetest.Open(b, dialect, roomserver.Schema))
			ids := make([]string, rooms)
			for i := range ids {
				ids[i] = newRoom(b, s, "12", roomserver.PublicChat)
			}
			content := json.RawMessage(`{"body":"the quick brown fox jumps over the lazy dog","msgtype":"m.text"}`)
			var n atomic.Int64
			b.SetParallelism(senders)
			b.ResetTimer()
			if senders == 1 {
				b.SetParallelism(1)
			}
			b.RunParallel(func(p *testing.PB) {
				for p.Next() {
					i := n.Add(1)
					_, err := s.Send(context.Background(), ids[int(i)%rooms], roomserver.Draft{
						Sender: alice, Type: "m.room.message", Content: content,
						Txn: &roomserver.Txn{User: alice, Device: "D", Path: "p", ID: fmt.Sprint(i)},
					})
					if err != nil {
						b.Error(err)
					}
				}
			})
		})
	}
}

func BenchmarkSendAlone(b *testing.B)   { benchSend(b, 1, 1) }
func BenchmarkSendOneRoom(b *testing.B) { benchSend(b, 25, 1) }
func BenchmarkSendRooms(b *testing.B)   { benchSend(b, 25, 50) }
