package media

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"testing"

	"maunium.net/go/mautrix/crypto/attachment"

	"github.com/myelin-im/myelin/storage"
)

// TestEncryptedAttachments sends files as clients do in encrypted rooms: to the server they are octets, and they come
// back as they were, whatever type the client says they have.
func TestEncryptedAttachments(t *testing.T) {
	server, _ := start(t, storage.SQLite)
	alice, bob := server.Register(t, "alice"), server.Register(t, "bob")
	plain := make([]byte, 3<<20+77)
	rand.NewChaCha8([32]byte{3}).Read(plain)
	for _, typ := range []string{"application/octet-stream", "image/jpeg", ""} {
		file := attachment.NewEncryptedFile()
		content := bytes.Clone(plain)
		file.EncryptInPlace(content)
		id := upload(t, alice, content, typ, "")
		raw, err := json.Marshal(file) // as it stands in the event
		if err != nil {
			t.Fatal(err)
		}
		a := do(t, bob, "GET", v1+"/download/"+id, nil)
		if a.Header.Get("Content-Type") != "application/octet-stream" || a.Header.Get("Content-Disposition") != "attachment" {
			t.Errorf("%q is served as %s, %s", typ, a.Header.Get("Content-Type"), a.Header.Get("Content-Disposition"))
		}
		var received attachment.EncryptedFile
		if err := json.Unmarshal(raw, &received); err != nil {
			t.Fatal(err)
		}
		if err := received.DecryptInPlace(a.Body); err != nil || !bytes.Equal(a.Body, plain) {
			t.Errorf("%q: %d bytes: %v", typ, len(a.Body), err)
		}
		expect(t, "a thumbnail of it", do(t, bob, "GET", v1+"/thumbnail/"+id+"?width=10&height=10", nil), 400, "M_UNKNOWN")
	}
}
