package storagetest

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"time"
)

// postgresURL returns the URL of the server of this test process, starting it at first use.
var postgresURL = sync.OnceValues(func() (string, error) {
	if u := os.Getenv("MYELIN_TEST_POSTGRES"); u != "" {
		return u, nil
	}
	return startServer()
})

// serverScript runs as the server's parent: it makes the cluster, starts the server, waits until
// standard input ends, stops the server and removes the folder.
const serverScript = `
dir=$1; bin=$2
trap '' INT TERM HUP
"$bin/initdb" -D "$dir/data" -U myelin -A trust -E UTF8 --locale=C --no-sync >"$dir/log" 2>&1 || exit 1
"$bin/postgres" -D "$dir/data" -k "$dir" -c listen_addresses= -c fsync=off -c full_page_writes=off \
	-c max_connections=200 -c shared_buffers=32MB -c autovacuum=off -c max_wal_size=256MB >>"$dir/log" 2>&1 &
server=$!
cat >/dev/null
kill -INT $server
wait $server
rm -rf "$dir"
`

func startServer() (string, error) {
	bin, err := findBinaries()
	if err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp("", "myelin-pg-")
	if err != nil {
		return "", err
	}
	cmd := exec.Command("sh", "-c", serverScript, "sh", dir, bin)
	cmd.Dir = dir
	if err := dropRoot(cmd, dir); err != nil {
		return "", err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return "", err
	}
	cmd.Stdin = r
	if err := cmd.Start(); err != nil {
		return "", fmt.Errorf("start PostgreSQL: %w", err)
	}
	r.Close()
	ended := make(chan error, 1)
	go func() {
		ended <- cmd.Wait()
		// The end of this process, however it ends, closes the pipe, and that stops the server. Nothing else may.
		runtime.KeepAlive(w)
	}()
	socket := filepath.Join(dir, ".s.PGSQL.5432")
	for range 6000 {
		if _, err := os.Stat(socket + ".lock"); err == nil {
			if _, err := os.Stat(socket); err == nil {
				return waitReady(dir)
			}
		}
		select {
		case err := <-ended:
			log, _ := os.ReadFile(filepath.Join(dir, "log"))
			os.RemoveAll(dir)
			return "", fmt.Errorf("PostgreSQL did not start: %w\n%s", err, log)
		case <-time.After(20 * time.Millisecond):
		}
	}
	return "", errors.New("PostgreSQL did not start within two minutes")
}

func waitReady(dir string) (string, error) {
	u := "postgres://myelin@/postgres?" + url.Values{"host": {dir}, "sslmode": {"disable"}}.Encode()
	var err error
	for range 500 {
		if err = execute(u, "SELECT 1"); err == nil {
			return u, nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	return "", fmt.Errorf("PostgreSQL does not answer: %w", err)
}

// findBinaries returns the folder of initdb and postgres: from PATH, or where Debian and others keep them.
func findBinaries() (string, error) {
	if path, err := exec.LookPath("initdb"); err == nil {
		if path, err = filepath.EvalSymlinks(path); err == nil {
			return filepath.Dir(path), nil
		}
	}
	for _, pattern := range []string{"/usr/lib/postgresql/*/bin/initdb", "/usr/pgsql-*/bin/initdb", "/opt/homebrew/opt/postgresql*/bin/initdb"} {
		if found, _ := filepath.Glob(pattern); len(found) > 0 {
			return filepath.Dir(found[len(found)-1]), nil
		}
	}
	return "", errors.New("initdb not found: install PostgreSQL (Debian: apt-get install postgresql) or set MYELIN_TEST_POSTGRES")
}
