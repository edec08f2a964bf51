//go:build javascript

package js

import (
	"testing"

	"github.com/myelin-im/myelin/test/harness"
)

// TestEncryption is an encrypted conversation between users of two servers, in Node.
func TestEncryption(t *testing.T) {
	harness.EachFederation(t, 2, func(t *testing.T, servers []*harness.Server) { talk(t, servers, "encryption.mjs") })
}

// TestEncryptionInBrowser is the same conversation in Chromium.
func TestEncryptionInBrowser(t *testing.T) {
	harness.EachFederation(t, 2, func(t *testing.T, servers []*harness.Server) { talk(t, servers, "browser.mjs", "encryption.mjs") })
}
