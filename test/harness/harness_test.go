package harness_test

import (
	"testing"
	"time"

	"github.com/myelin-im/myelin/test/harness"
)

func TestServerStartsStopsAndIsChecked(t *testing.T) {
	harness.Each(t, func(t *testing.T, s *harness.Server) {
		alice := s.Register(t, "alice")
		room := alice.Create(harness.J{"preset": "public_chat"})
		id := alice.Text(room, "hello")
		begin := time.Now()
		s.Restart()
		if took := time.Since(begin); took > 20*time.Second {
			t.Errorf("stop, check and start took %v", took)
		}
		if got := alice.Walk(room, "", "b", 3); len(got) < 6 || got[0] != id {
			t.Errorf("history after a restart: %v", got)
		}
	})
}
