package storage

import (
	"github.com/ncruces/go-sqlite3/vfs"
)

// walVFS is the driver's file system, except that the WAL is written with one system call a commit. SQLite
// writes two pieces a page (the frame's header and the page), all of them one behind the other, and then
// syncs: of a single small commit's processor time, half went into those calls.
const walVFS = "myelin"

func init() {
	vfs.Register(walVFS, walFS{vfs.Find("os").(vfs.VFSFilename)})
}

type walFS struct{ vfs.VFSFilename }

// OpenFilename opens a file, and wraps it if it is a WAL.
func (fs walFS) OpenFilename(name *vfs.Filename, flags vfs.OpenFlag) (vfs.File, vfs.OpenFlag, error) {
	f, out, err := fs.VFSFilename.OpenFilename(name, flags)
	if err == nil && flags&vfs.OPEN_WAL != 0 {
		f = &walFile{File: f}
	}
	return f, out, err
}

// walBuffer bounds what is held back.
const walBuffer = 1 << 20

// walFile holds back writes that continue each other until SQLite syncs, reads or asks for the size.
// Nobody else can miss them: readers look only at frames below the end that the shared index names, and
// SQLite moves that end after the sync. It must therefore be used with synchronous=FULL only.
type walFile struct {
	vfs.File
	start int64 // where buf belongs
	buf   []byte
}

// WriteAt appends to what is held back, or begins anew.
func (f *walFile) WriteAt(p []byte, off int64) (int, error) {
	if len(f.buf) > 0 && (off != f.start+int64(len(f.buf)) || len(f.buf)+len(p) > walBuffer) {
		if err := f.flush(); err != nil {
			return 0, err
		}
	}
	if len(f.buf) == 0 {
		f.start = off
	}
	f.buf = append(f.buf, p...)
	return len(p), nil
}

func (f *walFile) flush() error {
	if len(f.buf) == 0 {
		return nil
	}
	_, err := f.File.WriteAt(f.buf, f.start)
	f.buf = f.buf[:0]
	return err
}

// ReadAt flushes and reads.
func (f *walFile) ReadAt(p []byte, off int64) (int, error) {
	if err := f.flush(); err != nil {
		return 0, err
	}
	return f.File.ReadAt(p, off)
}

// Size flushes and returns the size.
func (f *walFile) Size() (int64, error) {
	if err := f.flush(); err != nil {
		return 0, err
	}
	return f.File.Size()
}

// Truncate flushes and truncates.
func (f *walFile) Truncate(size int64) error {
	if err := f.flush(); err != nil {
		return err
	}
	return f.File.Truncate(size)
}

// Sync flushes and syncs.
func (f *walFile) Sync(flags vfs.SyncFlag) error {
	if err := f.flush(); err != nil {
		return err
	}
	return f.File.Sync(flags)
}

// Close flushes and closes.
func (f *walFile) Close() error {
	err := f.flush()
	if closeErr := f.File.Close(); err == nil {
		err = closeErr
	}
	return err
}
