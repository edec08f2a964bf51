//go:build javascript

// Package js lets matrix-js-sdk, the client library of Element Web, talk with the server. Its tests need the packages
// that test/setup installs, and run with the build tag javascript.
package js

import (
	"context"
	"os/exec"
	"testing"
	"time"

	"github.com/myelin-im/myelin/homeserver/config"
	"github.com/myelin-im/myelin/storage/storagetest"
	"github.com/myelin-im/myelin/test/harness"
)

// converse runs a conversation with a server on each kind of database.
func converse(t *testing.T, script string, options ...func(*config.Config)) {
	for _, d := range storagetest.Dialects {
		t.Run(d.String(), func(t *testing.T) {
			s := harness.Start(t, d, options...)
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			if out, err := exec.CommandContext(ctx, "./node", script, s.URL).CombinedOutput(); err != nil {
				t.Errorf("the conversation failed: %v\n%s", err, out)
			}
		})
	}
}

func TestConversation(t *testing.T) { converse(t, "conversation.mjs") }

// TestSliding is a conversation through sliding sync.
func TestSliding(t *testing.T) { converse(t, "sliding.mjs") }

// TestFeatures has clients use what there is beside talking: threads, search, spaces, knocking, upgrades, guests.
func TestFeatures(t *testing.T) {
	converse(t, "features.mjs", func(c *config.Config) { c.Registration.Guests = true })
}
