package homeserver

import (
	"context"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/myelin-im/myelin/homeserver/config"
	"github.com/myelin-im/myelin/storage"
)

// TestAdvice gives servers that cannot start what is in their way, and looks for what to do about it.
func TestAdvice(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for _, test := range []struct {
		name    string
		prepare func(cfg *config.Config) error
		want    []string
	}{
		{"port", func(cfg *config.Config) error {
			cfg.Client.Address = taken.Addr().String()
			return nil
		}, []string{"address already in use", "client.address"}},
		{"port of another listener", func(cfg *config.Config) error {
			cfg.Metrics.Address = taken.Addr().String()
			return nil
		}, []string{"address already in use", "metrics.address"}},
		{"file", func(cfg *config.Config) error {
			return os.WriteFile(cfg.Server.DataDir, nil, 0o600)
		}, []string{"not a directory", "server.data_dir"}},
		{"no database", func(cfg *config.Config) error {
			if err := os.Mkdir(cfg.Server.DataDir, 0o700); err != nil {
				return err
			}
			return os.WriteFile(filepath.Join(cfg.Server.DataDir, "myelin.db"), []byte(strings.Repeat("no database", 1000)), 0o600)
		}, []string{"not a database", "server.data_dir"}},
		{"newer database", func(cfg *config.Config) error {
			return withDatabase(cfg, func(tx *storage.Tx) error {
				_, err := tx.Exec(`UPDATE schema_versions SET version = version + 1 WHERE feature = $1`, "accounts")
				return err
			})
		}, []string{"schema accounts is at version", "that version or a later one", "backup"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			cfg := testConfig(t, storage.SQLite)
			if err := test.prepare(cfg); err != nil {
				t.Fatal(err)
			}
			before := contents(t, cfg.Server.DataDir)
			s, err := New(t.Context(), cfg, silentLog())
			if err == nil {
				t.Fatal(s.close(context.Background()))
			}
			for _, want := range test.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%v does not tell %q", err, want)
				}
			}
			if after := contents(t, cfg.Server.DataDir); after != before {
				t.Errorf("the data folder held %s and holds %s", before, after)
			}
		})
	}
}

// TestAdviceForFiles: the user that runs the tests may read and write everything, so the errors are made up.
func TestAdviceForFiles(t *testing.T) {
	cfg := config.Default()
	for err, want := range map[error]string{
		syscall.EACCES: fmt.Sprintf("(./data), and everything in it, must belong to the user that this runs as (uid %d)", os.Geteuid()),
		syscall.EROFS:  "(./data) must be on a file system that can be written to",
	} {
		err = adviseDatabase(cfg, &fs.PathError{Op: "open", Path: "data/myelin.db", Err: err})
		if !strings.Contains(err.Error(), "data/myelin.db") || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not tell %q", err, want)
		}
	}
	if err := adviseListener("client", &net.OpError{Op: "listen", Err: syscall.EACCES}); !strings.Contains(err.Error(), "CAP_NET_BIND_SERVICE") {
		t.Error(err)
	}
}

// withDatabase makes the database of a server and changes it.
func withDatabase(cfg *config.Config, change func(tx *storage.Tx) error) error {
	ctx := context.Background()
	if err := os.Mkdir(cfg.Server.DataDir, 0o700); err != nil {
		return err
	}
	db, err := storage.Open(ctx, databaseOptions(cfg, silentLog()), schemas...)
	if err != nil {
		return err
	}
	if err := db.Write(ctx, change); err != nil {
		return err
	}
	return db.Close(ctx)
}

// contents lists the files of a folder, without the lock that a database leaves behind; empty if there is none.
func contents(t *testing.T, folder string) string {
	t.Helper()
	entries, err := os.ReadDir(folder)
	if err != nil {
		return ""
	}
	var names []string
	for _, e := range entries {
		if filepath.Ext(e.Name()) != ".lock" {
			names = append(names, e.Name())
		}
	}
	return strings.Join(names, " ")
}

// TestAdviceForMedia: it says which setting names the folder or the bucket that cannot be used.
func TestAdviceForMedia(t *testing.T) {
	cfg := testConfig(t, storage.SQLite)
	cfg.Media.Folder = filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(cfg.Media.Folder, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if s, err := New(t.Context(), cfg, silentLog()); err == nil || !strings.Contains(err.Error(), "(media.folder is "+cfg.Media.Folder+")") {
		t.Errorf("%v, %v", s, err)
	}
	empty := httptest.NewServer(http.NotFoundHandler())
	defer empty.Close()
	cfg.Media.S3 = config.S3{Endpoint: empty.URL, Region: "here", Bucket: "media", PathStyle: true}
	if s, err := New(t.Context(), cfg, silentLog()); err == nil || !strings.Contains(err.Error(), "no bucket media (media_s3.endpoint is "+empty.URL+")") {
		t.Errorf("%v, %v", s, err)
	}
}
