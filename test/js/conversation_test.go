//go:build javascript

// Package js lets matrix-js-sdk, the client library of Element Web, talk with the server. Its tests need the packages
// that test/setup installs, and run with the build tag javascript.
package js

import (
	"context"
	"os/exec"
	"testing"
	"time"

	"github.com/myelin-im/myelin/test/harness"
)

func TestConversation(t *testing.T) {
	harness.Each(t, func(t *testing.T, s *harness.Server) {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		if out, err := exec.CommandContext(ctx, "./node", "conversation.mjs", s.URL).CombinedOutput(); err != nil {
			t.Errorf("the conversation failed: %v\n%s", err, out)
		}
	})
}
