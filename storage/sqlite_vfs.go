package storage

import (
	"errors"
	"slices"

	"github.com/ncruces/go-sqlite3"
	"github.com/ncruces/go-sqlite3/vfs"
)

// liteVFS is the driver's file system, except that the WAL is written with one system call a commit, and that
// a write for which there is no space can be told from all other failures (SQLITE_FULL). SQLite
// writes two pieces a page (the frame's header and the page), all of them one behind the other, and then
// syncs: of a single small commit's processor time, half went into those calls.
const liteVFS = "myelin"

func init() {
	vfs.Register(liteVFS, liteFS{vfs.Find("os").(vfs.VFSFilename)})
}

type liteFS struct{ vfs.VFSFilename }

// OpenFilename opens a file, and wraps it if it is a database or a WAL.
func (fs liteFS) OpenFilename(name *vfs.Filename, flags vfs.OpenFlag) (vfs.File, vfs.OpenFlag, error) {
	f, out, err := fs.VFSFilename.OpenFilename(name, flags)
	if err != nil {
		return f, out, err
	}
	if flags&vfs.OPEN_WAL != 0 {
		f = &walFile{File: f, length: none, first: none, synced: none}
	} else if d, ok := f.(databaseFile); ok && flags&vfs.OPEN_MAIN_DB != 0 {
		f = dataFile{d}
	}
	return f, out, err
}

// databaseFile is what SQLite uses of the driver's file of a database.
type databaseFile interface {
	vfs.FileLockState
	vfs.FileHasMoved
	vfs.FileSizeHint
	vfs.FilePersistWAL
	vfs.FilePowersafeOverwrite
	vfs.FileSharedMemory
}

// dataFile is a database. With a WAL, only checkpoints write it.
type dataFile struct{ databaseFile }

// WriteAt writes; without space, the error is SQLITE_FULL.
func (f dataFile) WriteAt(p []byte, off int64) (int, error) {
	n, err := f.databaseFile.WriteAt(p, off)
	return n, tagFull(err)
}

// Truncate truncates; without space, the error is SQLITE_FULL.
func (f dataFile) Truncate(size int64) error { return tagFull(f.databaseFile.Truncate(size)) }

// tagFull makes the refusal of a write for lack of space SQLITE_FULL. It must not be asked about a sync: what fails there
// has been accepted before, and may be lost.
func tagFull(err error) error {
	if err != nil && slices.ContainsFunc(noSpace, func(full error) bool { return errors.Is(err, full) }) {
		return vfs.SystemError(err, sqlite3.FULL)
	}
	return err
}

// walBuffer bounds what is held back.
const walBuffer = 1 << 20

// walStep is by how much the WAL gets longer at least. A sync of what was written inside a file takes half as long as one that
// has to note a new length and new blocks. SQLite knows by salt and checksum that the zeros are no frames, as it knows of frames
// from before the WAL began anew.
const walStep = 1 << 20

// walZeros are what it gets longer by.
var walZeros [walStep]byte

// none is the offset of nothing.
const none = -1

// frameHeader is the size of what precedes a page in the WAL.
const frameHeader = 24

// walFile holds back writes that continue each other until SQLite syncs, reads or asks for the size.
// Nobody else can miss them: readers look only at frames below the end that the shared index names, and
// SQLite moves that end after the sync. It must therefore be used with synchronous=FULL only.
type walFile struct {
	vfs.File
	length int64 // of the file, or none if it is not known
	start  int64 // where buf belongs
	buf    []byte
	first  int64 // where what has been written since the last sync begins
	synced int64 // where what the last sync made durable begins

	// failed is why writing failed. Of the transaction that wrote, what was held back is lost then, although SQLite may have
	// been told that it was written, so nothing more is taken from that transaction.
	failed error
}

// forget drops what a transaction has written that ended without a commit. It must be called before the first
// transaction after a failure, and may be before any.
func (f *walFile) forget() {
	f.buf, f.first, f.synced, f.failed = f.buf[:0], none, none, nil
}

// undo makes the frames that the transaction has synced invalid: by its checksum, each frame needs those before it. The
// shared index names none of them, so that nobody can have read them; but a recovery would.
func (f *walFile) undo() error {
	if f.synced == none || f.first != none {
		return nil // without a sync at its end, there is no frame yet that completes the transaction
	}
	if _, err := f.File.WriteAt(make([]byte, frameHeader), f.synced); err != nil {
		return err
	}
	return f.File.Sync(vfs.SYNC_FULL)
}

// WriteAt appends to what is held back, or begins anew.
func (f *walFile) WriteAt(p []byte, off int64) (int, error) {
	if f.failed != nil {
		return 0, f.failed
	}
	if len(f.buf) > 0 && (off != f.start+int64(len(f.buf)) || len(f.buf)+len(p) > walBuffer) {
		if err := f.flush(); err != nil {
			return 0, err
		}
	}
	if len(f.buf) == 0 {
		f.start = off
	}
	if f.first == none {
		f.first = off
	}
	f.buf = append(f.buf, p...)
	return len(p), nil
}

func (f *walFile) flush() error {
	if f.failed != nil || len(f.buf) == 0 {
		return f.failed
	}
	_, err := f.File.WriteAt(f.buf, f.start)
	if err == nil {
		f.lengthen(f.start + int64(len(f.buf)))
	}
	f.buf = f.buf[:0]
	f.failed = tagFull(err)
	return f.failed
}

// lengthen makes the file longer by a step if it ends at end. Nobody relies on that, so that it may fail; but without knowing
// where the file ends, zeros could overwrite frames.
func (f *walFile) lengthen(end int64) {
	if f.length == none {
		size, err := f.File.Size()
		if err != nil {
			return
		}
		f.length = size
	}
	if end >= f.length {
		n, _ := f.File.WriteAt(walZeros[:], end) // what there is no room for is not needed yet
		f.length = end + int64(n)
	}
}

// ReadAt flushes and reads. What is not lost can be read after a failed write as well.
func (f *walFile) ReadAt(p []byte, off int64) (int, error) {
	if err := f.flush(); err != nil && off+int64(len(p)) > f.start {
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
	f.length = none
	return tagFull(f.File.Truncate(size))
}

// Sync flushes and syncs.
func (f *walFile) Sync(flags vfs.SyncFlag) error {
	if err := f.flush(); err != nil {
		return err
	}
	if err := f.File.Sync(flags); err != nil {
		f.failed = err
		return err
	}
	if f.first != none {
		f.first, f.synced = none, f.first
	}
	return nil
}

// Close flushes and closes.
func (f *walFile) Close() error {
	err := f.flush()
	if closeErr := f.File.Close(); err == nil {
		err = closeErr
	}
	return err
}
