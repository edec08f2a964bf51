package homeserver

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestControlSocket(t *testing.T) {
	ctx := context.Background()
	folder := t.TempDir()
	log := silentLog().WithField("test", t.Name())
	if dialControl(ctx, folder) != nil {
		t.Fatal("there is a server before one was started")
	}
	control, err := openControl(ctx, folder, log)
	if err != nil || control == nil {
		t.Fatal(control, err)
	}
	if info, err := os.Stat(controlPath(folder)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket has mode %v, %v", info.Mode(), err)
	}
	ended := make(chan error, 1)
	control.serve(controlHandler(map[string]operation{
		"double": operationOf(func(_ context.Context, n int) (int, error) { return 2 * n, nil }),
		"fail":   operationOf(func(context.Context, struct{}) (int, error) { return 0, errors.New("no such user") }),
	}), ended)

	if _, err := openControl(ctx, folder, log); err == nil || !strings.Contains(err.Error(), "another server is running") {
		t.Errorf("a second server in the same folder: %v", err)
	}
	client := dialControl(ctx, folder)
	if client == nil {
		t.Fatal("the server is not found")
	}
	var twice int
	if err := client.run(ctx, "double", 21, &twice); err != nil || twice != 42 {
		t.Errorf("got %d, %v", twice, err)
	}
	if err := client.run(ctx, "double", "x", &twice); err == nil {
		t.Error("a text was doubled")
	}
	if err := client.run(ctx, "fail", struct{}{}, &twice); err == nil || err.Error() != "no such user" {
		t.Errorf("got %v", err)
	}
	if err := client.run(ctx, "other", 1, &twice); err == nil || !strings.Contains(err.Error(), "another version") {
		t.Errorf("got %v", err)
	}
	control.drain(ctx)
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if dialControl(ctx, folder) != nil {
		t.Error("the server is found after its end")
	}
}

// TestControlSocketAfterKill makes sure that a socket without a server is in nobody's way.
func TestControlSocketAfterKill(t *testing.T) {
	ctx := context.Background()
	folder := t.TempDir()
	log := silentLog().WithField("test", t.Name())
	if err := os.WriteFile(controlPath(folder), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if dialControl(ctx, folder) != nil {
		t.Error("a file is taken for a server")
	}
	control, err := openControl(ctx, folder, log)
	if err != nil || control == nil {
		t.Fatal(control, err)
	}
	control.abandon()
}

func TestNoControlSocketInALongFolder(t *testing.T) {
	folder := filepath.Join(t.TempDir(), strings.Repeat("long", 30))
	if err := os.MkdirAll(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	control, err := openControl(context.Background(), folder, silentLog().WithField("test", t.Name()))
	if control != nil || err != nil {
		t.Errorf("got %v, %v", control, err)
	}
}
