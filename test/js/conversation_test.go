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

// limit is how long a conversation may take on a machine that does much else.
const limit = 10 * time.Minute

// talk runs a conversation, a script and its arguments, with these servers.
func talk(t *testing.T, servers []*harness.Server, script ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	for _, s := range servers {
		script = append(script, s.URL)
	}
	node := exec.CommandContext(ctx, "./node", script...)
	node.WaitDelay = time.Minute // for what its browser may hold open
	if out, err := node.CombinedOutput(); err != nil {
		t.Errorf("the conversation failed: %v\n%s", err, out)
	}
}

// converse runs a conversation with a server on each kind of database.
func converse(t *testing.T, script string, options ...func(*config.Config)) {
	for _, d := range storagetest.Dialects {
		t.Run(d.String(), func(t *testing.T) {
			talk(t, []*harness.Server{harness.Start(t, d, options...)}, script)
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
