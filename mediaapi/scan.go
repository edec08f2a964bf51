package mediaapi

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os/exec"
	"time"

	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/mediaapi/blob"
)

// scanTime bounds the operator's command for one file.
const scanTime = 2 * time.Minute

// scan has the operator's command look at new content, whose path is its one argument. It says by its exit status
// what it has found: 0 nothing, 1 something bad. With any other the content is refused as well, until the command works
// again.
func (a *API) scan(ctx context.Context, s *blob.Spool) error {
	if a.ScanCommand == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, scanTime)
	defer cancel()
	err := exec.CommandContext(ctx, a.ScanCommand, s.Path()).Run() // #nosec G204: the operator names it
	var exit *exec.ExitError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &exit) && exit.ExitCode() == 1:
		return errBlocked
	}
	return mxerr.New(http.StatusServiceUnavailable, "M_UNKNOWN", "Uploads cannot be checked at the moment").With(fmt.Errorf("run %s: %w", a.ScanCommand, err))
}
