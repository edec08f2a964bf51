package harness

import (
	"bytes"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/myelin-im/myelin/storage"
	"github.com/myelin-im/myelin/storage/storagetest"
)

// Process is a homeserver in a process of its own, started as other tools start one: by test/start-server.
type Process struct {
	// Server is where clients find it. Its Stop and Restart are not for processes.
	*Server

	t    testing.TB
	env  []string
	url  string // of the database
	data string
	root string // of the repository
	cmd  *exec.Cmd
	out  bytes.Buffer
}

// Build builds the program and returns its path.
func Build(t testing.TB) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "myelin")
	cmd := exec.Command("go", "build", "-o", file, "./cmd/myelin")
	cmd.Dir = repository()
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the program: %v\n%s", err, out)
	}
	return file
}

// repository is the root of the repository, found from this file.
func repository() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Join(filepath.Dir(file), "..", "..")
}

// StartProcess starts the program on a fresh database. It is killed, at the latest, when the test ends.
func StartProcess(t testing.TB, program string, d storage.Dialect) *Process {
	t.Helper()
	port, federation := strconv.Itoa(StablePort(t)), strconv.Itoa(StablePort(t))
	p := &Process{t: t, data: t.TempDir(), root: repository()}
	p.Server = &Server{Name: "myelin.test", URL: "http://127.0.0.1:" + port, t: t, http: &http.Client{
		Transport: &http.Transport{MaxIdleConnsPerHost: 200},
		Timeout:   time.Minute,
	}}
	p.env = append(os.Environ(), "MYELIN_BIN="+program, "SERVER_NAME="+p.Name, "DATA_DIR="+p.data, "CLIENT_PORT="+port,
		"FED_PORT="+federation, "MYELIN_PASSWORDS_MEMORY=8KiB", "MYELIN_PASSWORDS_ITERATIONS=1")
	p.url = "sqlite://" + filepath.Join(p.data, "myelin.db")
	if d == storage.PostgreSQL {
		p.url = storagetest.URL(t, d)
		p.env = append(p.env, "DATABASE_URL="+p.url)
	}
	t.Cleanup(p.Kill)
	p.Run()
	return p
}

// Run starts the process, again after Kill or End, and waits until it answers.
func (p *Process) Run() {
	p.t.Helper()
	p.out.Reset()
	p.http.CloseIdleConnections() // to the process before, of which one may not know yet that it was killed
	p.cmd = exec.Command(filepath.Join(p.root, "test", "start-server"))
	p.cmd.Env, p.cmd.Stdout, p.cmd.Stderr = p.env, &p.out, &p.out
	if err := p.cmd.Start(); err != nil {
		p.t.Fatalf("start the server: %v", err)
	}
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		res, err := p.http.Get(p.URL + "/_matrix/client/versions")
		if err == nil {
			res.Body.Close()
			return
		}
	}
	p.Kill()
	p.t.Fatalf("the server does not answer:\n%s", p.out.String())
}

// Kill ends the process as a crash would: at once, wherever it is.
func (p *Process) Kill() {
	if p.cmd == nil {
		return
	}
	if err := p.cmd.Process.Kill(); err != nil {
		p.t.Errorf("kill the server: %v", err)
	}
	_ = p.cmd.Wait() // it says that the server was killed
	p.cmd = nil
	p.http.CloseIdleConnections()
}

// End asks the process to end in order, and checks its database.
func (p *Process) End() {
	p.t.Helper()
	begin := time.Now()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		p.t.Errorf("end the server: %v", err)
	}
	if err := p.cmd.Wait(); err != nil {
		p.t.Errorf("the server ended with %v:\n%s", err, p.out.String())
	}
	if took := time.Since(begin); took > 20*time.Second { // it takes milliseconds where nothing else runs
		p.t.Errorf("the server took %v to end", took)
	}
	p.cmd = nil
	for line := range strings.Lines(p.out.String()) {
		if strings.Contains(line, "level=error") || strings.Contains(line, "panic") {
			p.t.Errorf("the server logged: %s", line)
		}
	}
	Check(p.t, p.url, p.Name, p.data)
}
