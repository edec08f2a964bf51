package blob

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"sync"
)

// Area is a folder for spools.
type Area struct {
	folder string
}

// NewArea makes the folder if it is missing.
func NewArea(folder string) (*Area, error) {
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return nil, fmt.Errorf("make a folder for uploads: %w", err)
	}
	return &Area{folder}, nil
}

// Recover empties the area after a crash. For each spool that was sealed it calls lost with the key, which may or may
// not be in the store; the spool goes only when lost returns nil. No spool may be in use.
func (a *Area) Recover(lost func(key string) error) error {
	entries, err := os.ReadDir(a.folder)
	if err != nil {
		return fmt.Errorf("read the folder of uploads: %w", err)
	}
	for _, e := range entries {
		if ValidKey(e.Name()) {
			if err := lost(e.Name()); err != nil {
				return err
			}
		}
		if err := os.Remove(filepath.Join(a.folder, e.Name())); err != nil {
			return fmt.Errorf("remove an unfinished upload: %w", err)
		}
	}
	return nil
}

const (
	// chunk is how much of a stream is in memory at once.
	chunk = 128 << 10
	// headSize is how many first bytes Head keeps.
	headSize = 512
)

var chunks = sync.Pool{New: func() any { return new([chunk]byte) }}

// Spool is a temporary file with the hash of what was written. It belongs to one goroutine.
type Spool struct {
	file *os.File
	path string
	key  string
	hash hash.Hash
	size int64
	head []byte
	told func(size int64)
}

// New makes an empty spool. It must be closed.
func (a *Area) New() (*Spool, error) {
	f, err := os.CreateTemp(a.folder, "part-*")
	if err != nil {
		return nil, fmt.Errorf("make a temporary file: %w", err)
	}
	return &Spool{file: f, path: f.Name(), hash: sha256.New()}, nil
}

// Adopt makes a spool of a file in the same file system, which is moved, and reads it once.
func (a *Area) Adopt(path string) (*Spool, error) {
	s, err := a.New()
	if err != nil {
		return nil, err
	}
	s.file.Close()
	if err = os.Rename(path, s.path); err == nil {
		s.file, err = os.OpenFile(s.path, os.O_RDWR, 0o600)
	}
	if err == nil {
		err = s.rehash()
	}
	if err != nil {
		s.Close()
		return nil, fmt.Errorf("take over a file: %w", err)
	}
	return s, nil
}

func (s *Spool) rehash() error {
	buf := chunks.Get().(*[chunk]byte)
	defer chunks.Put(buf)
	for {
		n, err := s.file.Read(buf[:])
		s.account(buf[:n])
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// account takes note of bytes of the content.
func (s *Spool) account(p []byte) {
	s.hash.Write(p)
	s.size += int64(len(p))
	if missing := headSize - len(s.head); missing > 0 {
		s.head = append(s.head, p[:min(missing, len(p))]...)
	}
}

// Write appends to the spool.
func (s *Spool) Write(p []byte) (int, error) {
	n, err := s.file.Write(p)
	s.account(p[:n])
	if s.told != nil {
		s.told(s.size)
	}
	return n, err
}

// Tell has fn called with the size after each write, so that somebody else can read the file meanwhile.
func (s *Spool) Tell(fn func(size int64)) { s.told = fn }

// ReadFrom appends everything that r has.
func (s *Spool) ReadFrom(r io.Reader) (total int64, err error) {
	buf := chunks.Get().(*[chunk]byte)
	defer chunks.Put(buf)
	for err == nil {
		n := 0
		for n < chunk && err == nil { // the network comes in small pieces, the disk likes large ones
			var more int
			more, err = r.Read(buf[n:])
			n += more
		}
		if _, werr := s.Write(buf[:n]); werr != nil {
			return total, werr
		}
		total += int64(n)
	}
	if err == io.EOF {
		return total, nil
	}
	return total, err
}

// Size is the number of bytes so far.
func (s *Spool) Size() int64 { return s.size }

// Hash is the SHA-256 of what was written so far.
func (s *Spool) Hash() []byte { return s.hash.Sum(nil) }

// Head is the beginning of the content, at most 512 bytes.
func (s *Spool) Head() []byte { return s.head }

// Path is where the file is, for programs that want to see it.
func (s *Spool) Path() string { return s.path }

// Reader returns the content from its beginning, valid until Close.
func (s *Spool) Reader() io.ReadSeeker { return io.NewSectionReader(s.file, 0, s.size) }

// Key is the key that Seal gave it.
func (s *Spool) Key() string { return s.key }

// Seal flushes the content to the disk and gives the spool its key.
func (s *Spool) Seal() error {
	if err := s.file.Sync(); err != nil {
		return fmt.Errorf("flush a temporary file: %w", err)
	}
	key := NewKey(s.Hash())
	path := filepath.Join(filepath.Dir(s.path), key)
	if err := os.Rename(s.path, path); err != nil {
		return fmt.Errorf("name a temporary file: %w", err)
	}
	s.key, s.path = key, path
	return nil
}

// Close removes the spool; what was put into a store stays there.
func (s *Spool) Close() error {
	err := errors.Join(s.file.Close(), os.Remove(s.path))
	if errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}
