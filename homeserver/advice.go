package homeserver

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"github.com/myelin-im/myelin/homeserver/config"
	"github.com/myelin-im/myelin/storage"
)

// adviseDatabase adds to an error of opening the database what the operator can do about it.
func adviseDatabase(cfg *config.Config, err error) error {
	switch {
	case errors.Is(err, storage.ErrMissing):
		return firstStart(cfg, err)
	case errors.Is(err, storage.ErrNewer):
		return fmt.Errorf("%w. Start that version or a later one, or restore the backup from before the upgrade", err)
	case cfg.Database.URL != "":
		return fmt.Errorf("%w (database.url)", err)
	}
	return adviseFiles(cfg, err)
}

// adviseFiles does so for errors of files in the data folder.
func adviseFiles(cfg *config.Config, err error) error {
	folder := cfg.Server.DataDir
	switch {
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w. The folder that server.data_dir names (%s), and everything in it, must belong to the user that this runs as (uid %d)",
			err, folder, os.Geteuid())
	case errors.Is(err, syscall.EROFS):
		return fmt.Errorf("%w. The folder that server.data_dir names (%s) must be on a file system that can be written to", err, folder)
	}
	return fmt.Errorf("%w (server.data_dir is %s)", err, folder)
}

// firstStart does so for errors of a command that finds nothing in the data folder.
func firstStart(cfg *config.Config, err error) error {
	return fmt.Errorf("%w. The server makes it when it first starts: start it once before (server.data_dir is %s)", err, cfg.Server.DataDir)
}

// adviseListener does so for errors of opening a listener. name is the section of its settings.
func adviseListener(name string, err error) error {
	setting := name + ".address"
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("%w. Another program listens there, or this server already: stop it or change %s", err, setting)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w. Ports below 1024 are for privileged users: grant CAP_NET_BIND_SERVICE or change %s", err, setting)
	}
	return fmt.Errorf("%w (%s)", err, setting)
}
