package scenario

import (
	"net/url"
	"runtime/metrics"
	"testing"
	"time"

	"github.com/myelin-im/myelin/storage"
	"github.com/myelin-im/myelin/storage/storagetest"
	"github.com/myelin-im/myelin/test/harness"
)

// BenchmarkJoinOfALargeRoom measures how long a user takes to enter a room of 5,000 members of another server, and until
// all of them are known, and by how much the memory of this process grows, in which both servers are.
func BenchmarkJoinOfALargeRoom(b *testing.B) {
	const members = 5000
	for _, d := range storagetest.Dialects {
		b.Run(d.String(), func(b *testing.B) {
			resident := harness.Federation(b, storage.SQLite, 1)[0]
			owner := resident.Register(b, "owner")
			room := owner.Create(harness.J{"preset": "public_chat", "name": "Square"})
			resident.Populate(room, members)
			var entered, known time.Duration
			var grown float64
			b.ResetTimer()
			for range b.N {
				b.StopTimer()
				user := harness.Federation(b, d, 1)[0].Register(b, "user")
				peak := watchMemory()
				b.StartTimer()
				begin := time.Now()
				user.Must("POST", harness.Path("/join/%s?server_name=", room)+url.QueryEscape(resident.Name), harness.J{})
				entered += time.Since(begin)
				if n := len(user.Must("GET", harness.Path("/rooms/%s/members?membership=join", room), nil).JSON.Get("chunk").Array()); n < members {
					b.Fatalf("%d members", n)
				}
				known += time.Since(begin)
				b.StopTimer()
				grown = max(grown, peak())
				b.StartTimer()
			}
			b.ReportMetric(entered.Seconds()/float64(b.N), "entered-s")
			b.ReportMetric(known.Seconds()/float64(b.N), "known-s")
			b.ReportMetric(grown/(1<<20), "grown-MB")
		})
	}
}

// watchMemory begins to watch how much memory the process has from the system; the returned function ends that and tells
// how much more than at the beginning it was at most, in bytes.
func watchMemory() (peak func() float64) {
	samples := []metrics.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}}
	read := func() float64 {
		metrics.Read(samples)
		return float64(samples[0].Value.Uint64()) - float64(samples[1].Value.Uint64())
	}
	first, stop, result := read(), make(chan struct{}), make(chan float64)
	go func() {
		highest := first
		for {
			select {
			case <-stop:
				result <- highest - first
				return
			case <-time.After(5 * time.Millisecond):
				highest = max(highest, read())
			}
		}
	}()
	return func() float64 {
		close(stop)
		return <-result
	}
}
