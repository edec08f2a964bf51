package homeserver

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/myelin-im/myelin/homeserver/config"
	"github.com/myelin-im/myelin/storage"
)

// TestFullDiskIsToldOnce: storage tells that the disk is full, not everybody who wanted to write.
func TestFullDiskIsToldOnce(t *testing.T) {
	for _, test := range []struct {
		level, format string
		err           error
		logged        bool
	}{
		{"info", "text", storage.ErrFull, false},
		{"info", "json", storage.ErrFull, false},
		{"error", "text", storage.ErrBroken, false},
		{"debug", "text", storage.ErrFull, true},
		{"info", "text", storage.ErrConflict, true},
		{"info", "json", errors.New("the network is down"), true},
	} {
		var lines bytes.Buffer
		log := NewLogger(config.Logging{Level: test.level, Format: test.format}, &lines)
		log.WithError(fmt.Errorf("write the index: %w", test.err)).Error("it will be tried again")
		if logged := strings.Contains(lines.String(), "it will be tried again"); logged != test.logged || !logged && lines.Len() > 0 {
			t.Errorf("%v at level %s: logged %q", test.err, test.level, lines.String())
		}
		log.Error("something else")
		if !strings.Contains(lines.String(), "something else") {
			t.Errorf("%v: what has no error is not logged", test.err)
		}
	}
}
