package templates_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"testing/fstest"

	"github.com/myelin-im/myelin/internal/templates"
)

var builtIn = fstest.MapFS{
	"templates/hello.txt":  {Data: []byte(`{{define "subject"}} Hello, {{.}} {{end}}Hello {{.}}`)},
	"templates/hello.html": {Data: []byte(`<p>Hello {{.}}</p>`)},
}

func TestMail(t *testing.T) {
	m, err := templates.Set{BuiltIn: builtIn}.Mail("hello")
	if err != nil {
		t.Fatal(err)
	}
	got, err := m.Compose("a@b.c", "<tea>\r\nBcc: d@e.f")
	if err != nil {
		t.Fatal(err)
	}
	if got.To != "a@b.c" || got.Subject != "Hello, <tea> Bcc: d@e.f" || got.Text != "Hello <tea>\r\nBcc: d@e.f" ||
		got.HTML != "<p>Hello &lt;tea&gt;\r\nBcc: d@e.f</p>" {
		t.Errorf("got %+v", got)
	}
}

func TestOperatorsTemplates(t *testing.T) {
	folder := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(folder, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	page := func() string {
		t.Helper()
		p, err := templates.Set{Folder: folder, BuiltIn: builtIn}.Page("hello")
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		if err := p.Execute(&out, "you"); err != nil {
			t.Fatal(err)
		}
		return out.String()
	}
	if got := page(); got != "<p>Hello you</p>" {
		t.Errorf("without a file: %q", got)
	}
	write("hello.html", "Bonjour {{.}}")
	if got := page(); got != "Bonjour you" {
		t.Errorf("with a file: %q", got)
	}
	own := templates.Set{Folder: folder, BuiltIn: builtIn}
	write("hello.html", "{{.")
	if _, err := own.Page("hello"); err == nil {
		t.Error("a page without an end is taken")
	}
	if _, err := own.Mail("hello"); err == nil {
		t.Error("an e-mail without an end is taken")
	}
	if _, err := own.Page("nothing"); err == nil {
		t.Error("there is a page that nobody wrote")
	}
	if _, err := (templates.Set{Folder: filepath.Join(folder, "missing"), BuiltIn: builtIn}).Page("hello"); err == nil {
		t.Error("a folder that does not exist is taken")
	}
	outside := filepath.Join(t.TempDir(), "outside.html")
	if err := os.WriteFile(outside, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(folder, "hello.html")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(folder, "hello.html")); err != nil {
		t.Fatal(err)
	}
	if _, err := own.Page("hello"); err == nil {
		t.Error("a link out of the folder is followed")
	}
}
