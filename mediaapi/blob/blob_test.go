package blob

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
)

func newDisk(t testing.TB) (*Area, *Disk, string) {
	folder := t.TempDir()
	area, err := NewArea(filepath.Join(folder, "tmp"))
	if err != nil {
		t.Fatal(err)
	}
	disk, err := NewDisk(filepath.Join(folder, "media"))
	if err != nil {
		t.Fatal(err)
	}
	return area, disk, folder
}

// files lists what is below a folder.
func files(t testing.TB, folder string) (list []string) {
	err := filepath.WalkDir(folder, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			list = append(list, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// store spools and puts content.
func store(t testing.TB, area *Area, to Store, content string) string {
	s, err := area.New()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.ReadFrom(iotest.OneByteReader(strings.NewReader(content))); err != nil {
		t.Fatal(err)
	}
	if want := sha256.Sum256([]byte(content)); !bytes.Equal(s.Hash(), want[:]) || s.Size() != int64(len(content)) {
		t.Errorf("hash %x, size %d", s.Hash(), s.Size())
	}
	if err := errors.Join(s.Seal(), to.Put(context.Background(), s)); err != nil {
		t.Fatal(err)
	}
	return s.Key()
}

// exercise is what every store must do.
func exercise(t *testing.T, area *Area, s Store) {
	ctx := context.Background()
	for _, content := range []string{"", "x", strings.Repeat("some content ", 40_000)} {
		key, twin := store(t, area, s, content), store(t, area, s, content)
		if key == twin || key[:64] != twin[:64] {
			t.Errorf("the same content is stored as %s and %s", key, twin)
		}
		if err := s.Remove(ctx, twin); err != nil {
			t.Error(err)
		}
		if _, err := s.Open(ctx, twin); !errors.Is(err, ErrNotFound) {
			t.Errorf("a removed blob: %v", err)
		}
		o, err := s.Open(ctx, key)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(o); err != nil || string(got) != content {
			t.Errorf("read %d bytes of %d: %v", len(got), len(content), err)
		}
		if size, err := o.Seek(0, io.SeekEnd); size != int64(len(content)) {
			t.Errorf("size %d: %v", size, err)
		}
		if len(content) > 100 {
			part := make([]byte, 7)
			if _, err := o.Seek(50, io.SeekStart); err != nil {
				t.Error(err)
			}
			if _, err := io.ReadFull(o, part); err != nil || string(part) != content[50:57] {
				t.Errorf("a part is %q: %v", part, err)
			}
		}
		o.Close()
		if err := errors.Join(s.Remove(ctx, key), s.Remove(ctx, key)); err != nil {
			t.Errorf("removing twice: %v", err)
		}
	}
	for _, key := range []string{"", "x", "../../etc/passwd", strings.Repeat("a", 81)} {
		if _, err := s.Open(ctx, key); err == nil {
			t.Errorf("the key %q was opened", key)
		}
		if err := s.Remove(ctx, key); err == nil {
			t.Errorf("the key %q was removed", key)
		}
	}
}

func TestDisk(t *testing.T) {
	area, disk, folder := newDisk(t)
	exercise(t, area, disk)
	if left := files(t, folder); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestCrash stops at every point of an upload.
func TestCrash(t *testing.T) {
	area, disk, folder := newDisk(t)
	ctx := context.Background()
	for stage := range 3 {
		s, err := area.New()
		if err != nil {
			t.Fatal(err)
		}
		s.Write([]byte("half of someth"))
		if stage > 0 {
			err = s.Seal()
		}
		if stage > 1 {
			err = errors.Join(err, disk.Put(ctx, s))
		}
		if err != nil {
			t.Fatal(err)
		}
		s.file.Close() // the process ends here
	}
	if n := len(files(t, folder)); n != 4 {
		t.Fatalf("%d files", n)
	}
	var lost []string
	if err := area.Recover(func(key string) error { lost = append(lost, key); return disk.Remove(ctx, key) }); err != nil {
		t.Fatal(err)
	}
	if left := files(t, folder); len(left) > 0 || len(lost) != 2 {
		t.Errorf("lost %v, left behind %v", lost, left)
	}
}

// TestCut reads a stream that breaks: what came is there, and so is the error.
func TestCut(t *testing.T) {
	area, _, folder := newDisk(t)
	s, err := area.New()
	if err != nil {
		t.Fatal(err)
	}
	for _, broken := range []error{io.ErrUnexpectedEOF, errors.New("reset")} {
		r := io.MultiReader(strings.NewReader("content"), iotest.ErrReader(broken))
		if _, err := s.ReadFrom(r); !errors.Is(err, broken) {
			t.Errorf("%v became %v", broken, err)
		}
	}
	if s.Size() != 14 || string(s.Head()) != "contentcontent" {
		t.Errorf("size %d, head %q", s.Size(), s.Head())
	}
	if err := errors.Join(s.Close(), s.Close()); err != nil {
		t.Errorf("closing twice: %v", err)
	}
	if left := files(t, folder); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestAdopt(t *testing.T) {
	area, _, folder := newDisk(t)
	path := filepath.Join(folder, "grown")
	if err := os.WriteFile(path, []byte("grown elsewhere"), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := area.Adopt(path)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if want := sha256.Sum256([]byte("grown elsewhere")); !bytes.Equal(s.Hash(), want[:]) {
		t.Errorf("hash %x", s.Hash())
	}
	if got, err := io.ReadAll(s.Reader()); string(got) != "grown elsewhere" {
		t.Errorf("read %q: %v", got, err)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("the file is still in its old place")
	}
	if _, err := area.Adopt(path); err == nil {
		t.Error("a missing file was taken over")
	}
}
