package homeserver

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/sirupsen/logrus"
)

// A running server listens on a socket in its data folder, so that "myelin user" works beside it: an embedded
// database has one process at a time, and a running server must hear of a changed password. Whoever may open the
// socket may read the database as well, so it asks for no credentials.

// maxControlBody bounds what either side of the control socket reads, in bytes.
const maxControlBody = 64 << 20

func controlPath(folder string) string { return filepath.Join(folder, "control.sock") }

type controlSocket struct {
	*listener
}

// openControl opens the control socket. Where that is impossible, as on file systems without sockets or in folders
// with very long names, the server runs without one. Another server in the same folder is an error.
func openControl(ctx context.Context, folder string, log *logrus.Entry) (*controlSocket, error) {
	path := controlPath(folder)
	if conn, err := new(net.Dialer).DialContext(ctx, "unix", path); err == nil {
		conn.Close()
		return nil, fmt.Errorf("another server is running in the data folder %s", folder)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) { // left behind by a kill
		return nil, fmt.Errorf("remove the old control socket: %w", err)
	}
	// The data folder is closed to others (mode 0700) if the server made it; the socket is in any case.
	socket, err := new(net.ListenConfig).Listen(ctx, "unix", path)
	if err == nil {
		err = os.Chmod(path, 0o600)
	}
	if err != nil {
		log.WithError(err).Warn("there is no control socket: myelin user works only while the server is stopped")
		if socket != nil {
			socket.Close()
		}
		return nil, nil
	}
	return &controlSocket{&listener{name: "control", socket: socket, log: log}}, nil
}

// An operation is something that the operator can ask for. It takes and returns JSON.
type operation func(ctx context.Context, in json.RawMessage) (any, error)

// operationOf makes an operation of a function with typed arguments.
func operationOf[In, Out any](fn func(ctx context.Context, in In) (Out, error)) operation {
	return func(ctx context.Context, raw json.RawMessage) (any, error) {
		var in In
		if err := json.Unmarshal(raw, &in); err != nil {
			return nil, err
		}
		return fn(ctx, in)
	}
}

// controlHandler serves operations at POST /name.
func controlHandler(operations map[string]operation) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		run, ok := operations[r.URL.Path[1:]]
		if !ok || r.Method != http.MethodPost {
			http.Error(w, "the running server is of another version and does not know this", http.StatusNotFound)
			return
		}
		in, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxControlBody))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		out, err := run(r.Context(), in)
		if err != nil {
			http.Error(w, err.Error(), http.StatusUnprocessableEntity)
			return
		}
		if err := json.NewEncoder(w).Encode(out); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	})
}

// controlClient asks a running server.
type controlClient struct {
	http.Client
}

// dialControl finds the running server of a data folder; it returns nil if there is none.
func dialControl(ctx context.Context, folder string) *controlClient {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", controlPath(folder))
	}
	conn, err := dial(ctx, "", "")
	if err != nil {
		return nil
	}
	conn.Close()
	return &controlClient{http.Client{Timeout: time.Minute, Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}}
}

// run asks for an operation.
func (c *controlClient) run(ctx context.Context, name string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://control/"+name, bytes.NewReader(body))
	if err != nil {
		return err
	}
	answer, err := c.Do(request)
	if err != nil {
		return fmt.Errorf("ask the running server: %w", err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(io.LimitReader(answer.Body, maxControlBody))
	if err != nil {
		return fmt.Errorf("read the running server's answer: %w", err)
	}
	if answer.StatusCode != http.StatusOK {
		return errors.New(string(bytes.TrimSpace(text)))
	}
	return json.Unmarshal(text, out)
}
