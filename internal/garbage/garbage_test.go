package garbage

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"testing"
	"time"
)

func TestPercent(t *testing.T) {
	for _, test := range []struct {
		live  uint64 // MB
		apart time.Duration
		want  int
	}{
		{0, time.Second, maxPercent},
		{8, time.Second, maxPercent},
		{40, time.Second, 300},
		{60, time.Second, 200},
		{128, time.Second, minPercent},
		{4096, time.Second, minPercent},
		{8, quiet, minPercent},
		{8, 2 * time.Minute, minPercent},
	} {
		if got := percent(test.live<<20, test.apart); got != test.want {
			t.Errorf("%d MB live, collected every %v: %d, want %d", test.live, test.apart, got, test.want)
		}
	}
}

// TestPace collects garbage: soon the setting is that of a busy server.
func TestPace(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(minPercent))
	t.Setenv("GOGC", "")
	Pace()
	setting := []metrics.Sample{{Name: "/gc/gogc:percent"}}
	for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		runtime.GC()
		if metrics.Read(setting); setting[0].Value.Uint64() == maxPercent {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("after many collections the setting is %d", setting[0].Value.Uint64())
		}
	}
}
