package roomserver_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
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

// BenchmarkStateDisk reports what a state event costs on disk: 1,000 keys set, then set again, in a database that was
// closed, so without its write-ahead log.
func BenchmarkStateDisk(b *testing.B) {
	for range b.N {
		path := filepath.Join(b.TempDir(), "bench.db")
		size := func(fill func(*roomserver.Server)) int64 {
			db, err := storage.Open(context.Background(), storage.Options{URL: path}, roomserver.Schema)
			if err != nil {
				b.Fatal(err)
			}
			fill(newServer(b, db))
			if err := db.Close(context.Background()); err != nil {
				b.Fatal(err)
			}
			info, err := os.Stat(path)
			if err != nil {
				b.Fatal(err)
			}
			return info.Size()
		}
		var room string
		before := size(func(s *roomserver.Server) { room = newRoom(b, s, "12", roomserver.PrivateChat) })
		const n = 2000
		after := size(func(s *roomserver.Server) {
			for i := range n {
				key := fmt.Sprint("k", i%(n/2))
				content := fmt.Sprintf(`{"value":%d,"pad":"%s"}`, i, strings.Repeat("x", 100))
				_, err := s.Send(context.Background(), room, roomserver.Draft{
					Sender: alice, Type: "org.example.state", StateKey: &key, Content: json.RawMessage(content),
				})
				if err != nil {
					b.Fatal(err)
				}
			}
		})
		b.ReportMetric(float64(after-before)/n, "disk-B/event")
	}
}
