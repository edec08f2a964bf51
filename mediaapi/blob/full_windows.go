package blob

import "golang.org/x/sys/windows"

var noSpace = []error{windows.ERROR_DISK_FULL, windows.ERROR_HANDLE_DISK_FULL}
