package keys

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/tidwall/gjson"

	"github.com/myelin-im/myelin/federation/client"
	"github.com/myelin-im/myelin/internal/signing"
)

const (
	// fetchTimeout bounds one request for keys, flightTimeout all that are made for one server.
	fetchTimeout  = 15 * time.Second
	flightTimeout = 40 * time.Second
	// patience is how long a server may take before notaries are asked as well.
	patience = 3 * time.Second
	// minBackoff is how long a server is left alone after a failure; it doubles up to maxBackoff. It is short, because
	// until it is over nothing that the server sends can be checked.
	minBackoff = time.Second
	maxBackoff = 2 * time.Minute
	// refetch is how long a server whose document lacks a key is left alone.
	refetch = 10 * time.Second
)

// need is a key that somebody asks for.
type need struct {
	id string
	at int64 // as in Ring.Key
}

// flight is a fetch that is under way.
type flight struct {
	done chan struct{}
	err  error // after done
}

// backoff says until when a server is left alone, and why.
type backoff struct {
	until    time.Time
	failures int
	err      error
}

// errWait is the error while a server is left alone.
type errWait struct{ cause error }

func (e errWait) Error() string { return fmt.Sprintf("failed a moment ago: %v", e.cause) }
func (e errWait) Unwrap() error { return e.cause }

var (
	errLacksKey = errors.New("the server does not name this key")
	errBusy     = errors.New("too many servers are asked for keys already")
)

// fetch asks a server, or notaries, for its keys, or waits for somebody else who does.
func (r *Ring) fetch(ctx context.Context, server string, n need) error {
	r.mu.Lock()
	f, running := r.flights[server]
	if !running {
		if r.inMemory(server, n) { // a fetch has ended since the caller looked
			r.mu.Unlock()
			return nil
		}
		if wait, ok := r.waits.Get(server); ok && r.cfg.Now().Before(wait.until) {
			r.mu.Unlock()
			return errWait{wait.err}
		}
		if len(r.flights) >= maxFlights {
			r.mu.Unlock()
			return errBusy
		}
		f = &flight{done: make(chan struct{})}
		r.flights[server] = f
		// It goes on if the one who asked hangs up: others wait for it.
		go r.fly(context.WithoutCancel(ctx), strings.Clone(server), n, f)
	}
	r.mu.Unlock()
	select {
	case <-f.done:
		return f.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// inMemory tells whether a key is known, without reading the table.
func (r *Ring) inMemory(server string, n need) bool {
	known, _ := r.known.Get(server)
	k, ok := known[n.id]
	return ok && k.validAt(n.at, r.now())
}

// fly does what fetch waits for.
func (r *Ring) fly(ctx context.Context, server string, n need, f *flight) {
	ctx, cancel := context.WithTimeout(ctx, flightTimeout)
	defer cancel()
	asked := false
	select {
	case r.slots <- struct{}{}:
		asked = true
		f.err = r.obtain(ctx, server, n)
		<-r.slots
	case <-ctx.Done():
		f.err = errBusy
	}
	r.mu.Lock()
	if asked { // else nothing is known of the server
		r.note(server, f.err)
	}
	delete(r.flights, server)
	r.mu.Unlock()
	close(f.done)
}

// note remembers how a fetch ended. r.mu is held.
func (r *Ring) note(server string, err error) {
	wait, _ := r.waits.Get(server)
	wait.err = err
	switch {
	case err == nil: // the server may get another key at any moment
		wait = backoff{}
	case errors.Is(err, errLacksKey):
		wait.failures, wait.until = 0, r.cfg.Now().Add(refetch)
	default:
		wait.until = r.cfg.Now().Add(min(minBackoff<<min(wait.failures, 10), maxBackoff))
		wait.failures++
	}
	r.waits.Put(server, wait, 1)
}

// Reached says that a server was heard of, so that it is asked again at once if it failed before.
func (r *Ring) Reached(server string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if wait, ok := r.waits.Get(server); ok && wait.failures > 0 {
		r.waits.Delete(server)
	}
}

// obtain asks the server itself and, if that fails or takes long, the notaries, one after the other.
func (r *Ring) obtain(ctx context.Context, server string, n need) error {
	direct := make(chan error, 1)
	go func() { direct <- r.fetchDirect(ctx, server) }()
	var hurry <-chan time.Time
	if len(r.cfg.Notaries) > 0 {
		timer := time.NewTimer(patience)
		defer timer.Stop()
		hurry = timer.C
	}
	var err error
	answered := false
	select {
	case err = <-direct:
		answered = true
		if err == nil && r.satisfied(ctx, server, n) {
			return nil
		}
	case <-hurry:
	}
	for _, notary := range r.cfg.Notaries {
		if notary == server || notary == r.cfg.ServerName || ctx.Err() != nil {
			continue
		}
		if err := r.fetchNotary(ctx, notary, server, n); err != nil {
			r.cfg.Log.WithError(err).WithField("notary", notary).Debug("a notary does not help with a key")
		} else if r.satisfied(ctx, server, n) {
			return nil
		}
	}
	if !answered {
		err = <-direct
	}
	if err == nil && !r.satisfied(ctx, server, n) {
		err = errLacksKey
	}
	return err
}

func (r *Ring) satisfied(ctx context.Context, server string, n need) bool {
	if n.id == "" { // whatever there is
		return true
	}
	key, _, err := r.look(ctx, server, n.id, n.at)
	return err == nil && key != nil
}

// fetchDirect reads a server's keys from the server.
func (r *Ring) fetchDirect(ctx context.Context, server string) error {
	raw, err := r.cfg.Client.Do(ctx, client.Request{
		Server: server, Method: "GET", Path: "/_matrix/key/v2/server", Timeout: fetchTimeout, MaxBytes: maxDocument, Unsigned: true,
	})
	if err != nil {
		return err
	}
	d, err := parseDocument(raw, server, r.now())
	if err != nil {
		return err
	}
	return r.store(ctx, server, d)
}

// maxNotaryAnswer bounds what a notary sends, in bytes, and maxDocuments how many documents are looked at.
const (
	maxNotaryAnswer = 2 << 20
	maxDocuments    = 50
)

// fetchNotary reads a server's keys from a notary.
func (r *Ring) fetchNotary(ctx context.Context, notary, server string, n need) error {
	type criteria struct {
		MinimumValidUntil int64 `json:"minimum_valid_until_ts,omitempty"`
	}
	wanted := map[string]criteria{}
	if n.id != "" {
		least := n.at
		if least == Now {
			least = r.now()
		}
		wanted[n.id] = criteria{max(least, 0)}
	}
	body, err := json.Marshal(map[string]any{"server_keys": map[string]any{server: wanted}})
	if err != nil {
		return err
	}
	raw, err := r.cfg.Client.Do(ctx, client.Request{
		Server: notary, Method: "POST", Path: "/_matrix/key/v2/query", Body: body, Timeout: fetchTimeout, MaxBytes: maxNotaryAnswer,
	})
	if err != nil {
		return err
	}
	list := gjson.GetBytes(raw, "server_keys").Array()
	err = fmt.Errorf("%s does not know %s", notary, server)
	for _, one := range list[:min(len(list), maxDocuments)] {
		d, bad := parseDocument([]byte(one.Raw), server, r.now())
		if bad == nil {
			bad = r.checkNotary(ctx, notary, d)
		}
		if bad != nil {
			err = bad
			continue
		}
		if err := r.store(ctx, server, d); err != nil {
			return err
		}
		err = nil
	}
	return err
}

// checkNotary demands the notary's own signature, with a key that the notary itself publishes.
func (r *Ring) checkNotary(ctx context.Context, notary string, d *document) error {
	for _, s := range signaturesOf(d.raw, notary) {
		key, _, err := r.look(ctx, notary, s.KeyID, Now)
		if err == nil && key == nil {
			// Not by way of notaries: they would vouch for each other.
			if err = r.fetchDirect(ctx, notary); err == nil {
				key, _, err = r.look(ctx, notary, s.KeyID, Now)
			}
		}
		if err != nil {
			return fmt.Errorf("the keys of the notary %s: %w", notary, err)
		}
		if key != nil && signing.VerifyJSON(d.raw, notary, s.KeyID, key) == nil {
			return nil
		}
	}
	return fmt.Errorf("%w: the notary %s did not sign it", errDocument, notary)
}
