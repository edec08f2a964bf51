package main

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

// result is what a command line did.
type result struct {
	status         int
	stdout, stderr string
}

// execute runs a command line in a folder of its own with these variables and this standard input.
func execute(t *testing.T, variables []string, stdin string, arguments ...string) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	status := run(&environment{Context: context.Background(), stdin: strings.NewReader(stdin), stdout: &stdout, stderr: &stderr, variables: variables}, arguments)
	return result{status, stdout.String(), stderr.String()}
}

// inTemporaryFolder makes a new folder with a short name the working directory.
func inTemporaryFolder(t *testing.T) string {
	t.Helper()
	folder, err := os.MkdirTemp("", "myelin")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(folder) })
	t.Chdir(folder)
	return folder
}

func TestCommandLine(t *testing.T) {
	inTemporaryFolder(t)
	if _, _, stop := serveHere(t); stop() != 0 {
		t.Fatal("the server does not run")
	}
	cheap := []string{"MYELIN_PASSWORDS_MEMORY=8KiB", "MYELIN_PASSWORDS_ITERATIONS=1"}
	for _, test := range []struct {
		name      string
		variables []string
		stdin     string
		arguments []string
		status    int
		stdout    string
		stderr    string
	}{
		{"help", nil, "", []string{"--help"}, 0, "config print", ""},
		{"unknown command", nil, "", []string{"serf"}, 2, "", "unexpected argument serf"},
		{"unknown flag", nil, "", []string{"--colour"}, 2, "", "unknown flag --colour"},
		{"version", nil, "", []string{"version"}, 0, "myelin ", ""},
		{"routes", nil, "", []string{"routes"}, 0, "/_matrix/client/v3/rooms/{roomId}/send/{eventType}/{txnId}", ""},
		{"check", nil, "", []string{"config", "check"}, 0, "is right", ""},
		{"check a variable", []string{"MYELIN_SERVER_NAME=a b"}, "", []string{"config", "check"}, 1, "", `MYELIN_SERVER_NAME: server.name: "a b" is not a server name`},
		{"check a missing file", nil, "", []string{"-c", "none.yaml", "config", "check"}, 1, "", "none.yaml: no such file"},
		{"print", []string{"MYELIN_SERVER_NAME=example.org", "MYELIN_REGISTRATION_SHARED_SECRET=hush"}, "", []string{"config", "print"}, 0, "\n  name: example.org\n", ""},
		{"a bad configuration stops the server", []string{"MYELIN_CLIENT_ADDRESS=x"}, "", nil, 1, "", "MYELIN_CLIENT_ADDRESS"},
		{"a missing file that is configured stops the server", []string{"MYELIN_EMAIL_TEMPLATES=none"}, "", nil, 1, "", "MYELIN_EMAIL_TEMPLATES: email.templates: "},
		{"create", cheap, "", []string{"user", "create", "alice", "--admin"}, 0, "@alice:localhost has been made\npassword: ", ""},
		{"create again", cheap, "", []string{"user", "create", "alice"}, 1, "", "taken"},
		{"create with a password", cheap, "correct horse\n", []string{"user", "create", "bob", "--password-stdin"}, 0, "@bob:localhost has been made\n", ""},
		{"create with an empty password", cheap, "\n", []string{"user", "create", "carol", "--password-stdin"}, 1, "", "no password"},
		{"passwd", cheap, "", []string{"user", "passwd", "@bob:localhost"}, 0, "@bob:localhost has another password", ""},
		{"admin", nil, "", []string{"user", "admin", "bob"}, 0, "@bob:localhost is an administrator", ""},
		{"revoke", nil, "", []string{"user", "admin", "alice", "--revoke"}, 0, "@alice:localhost is an ordinary account", ""},
		{"deactivate", nil, "", []string{"user", "deactivate", "alice"}, 0, "@alice:localhost is deactivated", ""},
		{"deactivate nobody", nil, "", []string{"user", "deactivate", "dora"}, 1, "", "no such account"},
		{"recheck an unknown room", nil, "", []string{"room", "recheck", "!none:localhost"}, 1, "", "unknown room"},
		{"invite", nil, "", []string{"user", "invite", "--uses=0", "--valid=24h"}, 0, "\n", ""},
		{"invite for no time", nil, "", []string{"user", "invite", "--valid=-1h"}, 1, "", "negative"},
		{"list", nil, "", []string{"user", "list"}, 0, "deactivated\n@bob:localhost", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := execute(t, test.variables, test.stdin, test.arguments...)
			if r.status != test.status || !strings.Contains(r.stdout, test.stdout) || !strings.Contains(r.stderr, test.stderr) {
				t.Errorf("status %d\nstdout %s\nstderr %s", r.status, r.stdout, r.stderr)
			}
			if test.status == 0 && r.stderr != "" || strings.Contains(r.stdout, "hush") {
				t.Errorf("stdout %s\nstderr %s", r.stdout, r.stderr)
			}
		})
	}
}

func TestUsualConfigurationFile(t *testing.T) {
	folder := inTemporaryFolder(t)
	if err := os.WriteFile("myelin.yaml", []byte("server: {name: example.org}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if r := execute(t, nil, "", "config", "print"); !strings.Contains(r.stdout, "\n  name: example.org\n") {
		t.Errorf("%+v", r)
	}
	other := filepath.Join(folder, "other.yaml")
	if err := os.WriteFile(other, []byte("server: {name: other.org}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if r := execute(t, nil, "", "--config", other, "config", "print"); !strings.Contains(r.stdout, "\n  name: other.org\n") {
		t.Errorf("%+v", r)
	}
}

// lines is what a server has written so far.
type lines struct {
	mu   sync.Mutex
	text bytes.Buffer // guarded by mu
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// greeted finds where the server is.
var greeted = regexp.MustCompile(`localhost is at http://(\S+)`)

// serveHere runs the server of the working directory as main does, until stop is called, which returns the exit status.
func serveHere(t *testing.T) (address string, stdout *lines, stop func() int) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	stdout = &lines{}
	ended := make(chan int, 1)
	go func() {
		ended <- run(&environment{Context: ctx, stdout: stdout, stderr: io.Discard, variables: []string{"MYELIN_CLIENT_ADDRESS=127.0.0.1:0"}}, nil)
	}()
	for begin := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		if found := greeted.FindStringSubmatch(stdout.String()); found != nil {
			address = found[1]
			response, err := http.Get("http://" + address + "/_matrix/client/versions")
			if err == nil {
				response.Body.Close()
				if response.StatusCode == http.StatusOK {
					break
				}
			}
		}
		if time.Since(begin) > time.Minute {
			t.Fatalf("no answer; greeted with %q", stdout)
		}
	}
	return address, stdout, func() int {
		cancel()
		return <-ended
	}
}

func TestServe(t *testing.T) {
	inTemporaryFolder(t)
	_, stdout, stop := serveHere(t)
	for _, file := range []string{"data/signing.key", "data/myelin.db", "data/control.sock"} {
		if _, err := os.Stat(file); err != nil {
			t.Error(err)
		}
	}
	if status := stop(); status != 0 {
		t.Errorf("status %d", status)
	}
	if !strings.Contains(stdout.String(), "There is no administrator yet") {
		t.Errorf("greeted with %q", stdout)
	}
}

// TestNothingIsMade gives commands that need a database in a folder without one.
func TestNothingIsMade(t *testing.T) {
	inTemporaryFolder(t)
	for _, command := range []string{
		"user list", "user create alice", "user passwd alice", "user deactivate alice", "user admin alice", "user invite", "room recheck !a:localhost",
	} {
		if r := execute(t, nil, "", strings.Fields(command)...); r.status != 1 || r.stdout != "" || !strings.Contains(r.stderr, "there is no database") || !strings.Contains(r.stderr, "start it once before") {
			t.Errorf("%s: %+v", command, r)
		}
	}
	for _, command := range []string{"key create", "key rotate"} {
		if r := execute(t, nil, "", strings.Fields(command)...); r.status != 1 || r.stdout != "" || !strings.Contains(r.stderr, "signing key") || !strings.Contains(r.stderr, "start it once before") {
			t.Errorf("%s: %+v", command, r)
		}
	}
	if made, err := os.ReadDir("."); err != nil || len(made) > 0 {
		t.Errorf("made %v, %v", made, err)
	}
}

// TestLostKey starts a server whose signing key is gone.
func TestLostKey(t *testing.T) {
	inTemporaryFolder(t)
	_, _, stop := serveHere(t)
	if status := stop(); status != 0 {
		t.Fatalf("status %d", status)
	}
	// Nobody has used the key yet.
	if err := os.Remove("data/signing.key"); err != nil {
		t.Fatal(err)
	}
	variables := []string{"MYELIN_CLIENT_ADDRESS=127.0.0.1:0", "MYELIN_PASSWORDS_MEMORY=8KiB"}
	if r := execute(t, variables, "", "user", "create", "alice"); r.status != 0 {
		t.Fatalf("a key of a server that nobody has used: %+v", r)
	}
	if r := execute(t, nil, "", "key", "create"); r.status != 1 || !strings.Contains(r.stderr, "exists") {
		t.Errorf("a key beside another: %+v", r)
	}
	if err := os.Remove("data/signing.key"); err != nil {
		t.Fatal(err)
	}
	for _, command := range []string{"serve", "user list"} {
		if r := execute(t, variables, "", strings.Fields(command)...); r.status != 1 || !strings.Contains(r.stderr, "myelin key create") {
			t.Errorf("%s: %+v", command, r)
		}
	}
	if _, err := os.Stat("data/signing.key"); err == nil {
		t.Error("a new key was made")
	}
	if r := execute(t, nil, "", "key", "create"); r.status != 0 || !strings.Contains(r.stdout, "signs with ed25519:") {
		t.Errorf("%+v", r)
	}
	if r := execute(t, nil, "", "user", "list"); r.status != 0 || !strings.Contains(r.stdout, "@alice:localhost") {
		t.Errorf("%+v", r)
	}
}
