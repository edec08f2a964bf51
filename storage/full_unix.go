//go:build unix

package storage

import "golang.org/x/sys/unix"

// noSpace are the system's errors for a write for which there is no space.
var noSpace = []error{unix.ENOSPC, unix.EDQUOT}
