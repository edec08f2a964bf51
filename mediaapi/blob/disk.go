package blob

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
)

// Disk is a folder of 256 folders, by the first byte of the hash.
type Disk struct {
	folder string

	mu    sync.Mutex
	ready bool // the 256 folders are there
}

// NewDisk makes the folder if it is missing. Spools must be in the same file system.
func NewDisk(folder string) (*Disk, error) {
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return nil, fmt.Errorf("make a folder for media: %w", err)
	}
	return &Disk{folder: folder}, nil
}

// path is only given valid keys, so nothing climbs out of the folder.
func (d *Disk) path(key string) (string, error) {
	if !ValidKey(key) {
		return "", fmt.Errorf("blob: %.100q is no key", key)
	}
	return filepath.Join(d.folder, key[:2], key), nil
}

// prepare makes all folders at the first write, so that no later one has to make one and flush its name.
func (d *Disk) prepare() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ready {
		return nil
	}
	for i := range 256 {
		if err := os.Mkdir(filepath.Join(d.folder, fmt.Sprintf("%02x", i)), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	if err := syncFolder(d.folder); err != nil {
		return err
	}
	d.ready = true
	return nil
}

// Put gives the file a second name in its place, so that the first one can tell of it after a crash.
func (d *Disk) Put(_ context.Context, s *Spool) error {
	path, err := d.path(s.key)
	if err == nil {
		err = d.prepare()
	}
	if err == nil {
		err = os.Link(s.path, path)
	}
	if err == nil {
		err = syncFolder(filepath.Dir(path))
	}
	if err != nil {
		return fmt.Errorf("keep a file: %w", err)
	}
	return nil
}

// Open opens a file.
func (d *Disk) Open(_ context.Context, key string) (Object, error) {
	path, err := d.path(key)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(path) // #nosec G304: the path is made of a checked key
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", key, ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("open a blob: %w", err)
	}
	return f, nil
}

// Remove removes a file.
func (d *Disk) Remove(_ context.Context, key string) error {
	path, err := d.path(key)
	if err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove a blob: %w", err)
	}
	return nil
}

// URL has none to offer.
func (d *Disk) URL(context.Context, string, Link) (string, error) { return "", nil }

// syncFolder makes the names in a folder durable.
func syncFolder(path string) error {
	f, err := os.Open(path) // #nosec G304: a folder of ours
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
