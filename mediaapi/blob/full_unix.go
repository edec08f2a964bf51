//go:build unix

package blob

import "golang.org/x/sys/unix"

var noSpace = []error{unix.ENOSPC, unix.EDQUOT}
