package storage

import "golang.org/x/sys/windows"

// noSpace are the system's errors for a write for which there is no space.
var noSpace = []error{windows.ERROR_DISK_FULL, windows.ERROR_HANDLE_DISK_FULL}
