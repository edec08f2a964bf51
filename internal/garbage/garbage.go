// Package garbage sets how often the garbage collector runs.
//
// The runtime collects whenever the heap has doubled. Most of this server's live heap is small, so that under load it
// would collect several times a second, and spend a tenth of its processor time on that.
package garbage

import (
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	// room is how much garbage there may be, in bytes, as long as that is more than the live heap.
	room = 128 << 20
	// quiet is the time between two collections from which on the server is not busy.
	quiet = 3 * time.Second

	minPercent, maxPercent = 100, 400
	// step is the smallest change: each stops the world for a moment.
	step = 50
)

// Pace lets garbage gather while the server is busy, for as long as the process runs. An operator who sets GOGC is left
// alone; GOMEMLIMIT holds as ever.
func Pace() {
	if os.Getenv("GOGC") != "" {
		return
	}
	p := &pace{last: time.Now(), percent: minPercent}
	p.await()
}

// pace is what is known at a collection of the one before it.
type pace struct {
	last    time.Time
	percent int
}

// sentinel is garbage at once, so that the next collection finds it.
type sentinel struct{ _ *sentinel }

// await has the next collection noticed.
func (p *pace) await() {
	runtime.AddCleanup(new(sentinel), (*pace).collected, p)
}

// collected follows each collection.
func (p *pace) collected() {
	now := time.Now()
	if want := percent(liveHeap(), now.Sub(p.last)); want != p.percent {
		debug.SetGCPercent(want)
		p.percent = want
	}
	p.last = now
	p.await()
}

// percent is the setting for a live heap, in bytes, whose last two collections lie so far apart.
func percent(live uint64, apart time.Duration) int {
	if apart >= quiet {
		return minPercent
	}
	return min(max(int(room*100/max(live, 1<<20))/step*step, minPercent), maxPercent)
}

// liveHeap is what the last collection has left, in bytes.
func liveHeap() uint64 {
	sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}
