package blob

import (
	"os"
	"strings"
	"testing"
)

// TestFullDisk writes a spool to a disk that is full: the device that always is.
func TestFullDisk(t *testing.T) {
	area, _, folder := newDisk(t)
	s, err := area.New()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.file.Close(); err != nil {
		t.Fatal(err)
	}
	if s.file, err = os.OpenFile("/dev/full", os.O_RDWR, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := s.ReadFrom(strings.NewReader("content")); !IsFull(err) {
		t.Errorf("without space: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if left := files(t, folder); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if IsFull(os.ErrNotExist) || IsFull(nil) {
		t.Error("other errors are taken for a lack of space")
	}
}
