package harness

import (
	"fmt"
	"sync"
	"testing"

	"github.com/sirupsen/logrus"
)

// logWatch collects what a server logs as an error: nothing that a test does may lead to one.
type logWatch struct {
	mu     sync.Mutex
	errors []string
}

// Levels implements logrus.Hook.
func (w *logWatch) Levels() []logrus.Level {
	return []logrus.Level{logrus.PanicLevel, logrus.FatalLevel, logrus.ErrorLevel}
}

// Fire implements logrus.Hook.
func (w *logWatch) Fire(e *logrus.Entry) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.errors) < 20 {
		w.errors = append(w.errors, fmt.Sprintf("%s %v", e.Message, e.Data))
	}
	return nil
}

func (w *logWatch) report(t testing.TB) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, line := range w.errors {
		t.Errorf("the server logged an error: %s", line)
	}
}
