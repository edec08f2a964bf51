package storage_test

import "io/fs"

// sub is fs.Sub of a folder that exists.
func sub(f fs.FS, dir string) fs.FS {
	s, err := fs.Sub(f, dir)
	if err != nil {
		panic(err)
	}
	return s
}
