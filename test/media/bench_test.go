package media

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/myelin-im/myelin/storage"
)

const (
	benchSize    = 1 << 20
	benchWorkers = 8
)

// spread runs fn n times by some workers.
func spread(n int, fn func(i int)) {
	var next atomic.Int64
	var group sync.WaitGroup
	for range benchWorkers {
		group.Go(func() {
			for i := next.Add(1); i <= int64(n); i = next.Add(1) {
				fn(int(i))
			}
		})
	}
	group.Wait()
}

// BenchmarkTransfers moves files of 1 MiB over HTTP, and compares with what a program does that only streams them to the
// same disk: copy, SHA-256, fsync.
func BenchmarkTransfers(b *testing.B) {
	content := make([]byte, benchSize)
	rand.NewChaCha8([32]byte{1}).Read(content)
	numbered := func(i int) []byte {
		c := bytes.Clone(content)
		binary.BigEndian.PutUint64(c, uint64(i))
		return c
	}
	folder := b.TempDir()
	b.Run("cat", func(b *testing.B) {
		b.SetBytes(benchSize)
		spread(b.N, func(i int) {
			f, err := os.CreateTemp(folder, "")
			if err != nil {
				b.Error(err)
				return
			}
			sum := sha256.New()
			io.Copy(io.MultiWriter(f, sum), bytes.NewReader(numbered(i)))
			if err := f.Sync(); err != nil {
				b.Error(err)
			}
			f.Close()
		})
	})
	s, _ := start(b, storage.SQLite)
	alice := s.Register(b, "alice")
	transport := &http.Transport{MaxIdleConnsPerHost: benchWorkers}
	defer transport.CloseIdleConnections()
	send := func(method, path string, body []byte) []byte {
		r, err := http.NewRequest(method, s.URL+path, bytes.NewReader(body))
		if err != nil {
			b.Error(err)
			return nil
		}
		r.Header.Set("Authorization", "Bearer "+alice.Token)
		res, err := transport.RoundTrip(r)
		if err != nil {
			b.Error(err)
			return nil
		}
		defer res.Body.Close()
		if method == "GET" {
			if n, err := io.Copy(io.Discard, res.Body); n != benchSize || err != nil {
				b.Errorf("%d bytes: %v", n, err)
			}
			return nil
		}
		raw, _ := io.ReadAll(res.Body)
		return raw
	}
	number := atomic.Int64{}
	b.Run("upload", func(b *testing.B) {
		b.SetBytes(benchSize)
		spread(b.N, func(int) {
			raw := send("POST", legacy+"/upload", numbered(int(number.Add(1))))
			if !bytes.Contains(raw, []byte("mxc://")) {
				b.Errorf("%s", raw)
			}
		})
	})
	id := upload(b, alice, content, "", "")
	b.Run("download", func(b *testing.B) {
		b.SetBytes(benchSize)
		spread(b.N, func(int) { send("GET", v1+"/download/"+id, nil) })
	})
}
