package blob

import (
	"errors"
	"slices"
)

// IsFull tells whether an error says that the disk has no space, or that the server's user may not take more of it.
func IsFull(err error) bool {
	return slices.ContainsFunc(noSpace, func(full error) bool { return errors.Is(err, full) })
}
