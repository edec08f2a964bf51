package keys

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/myelin-im/myelin/internal/canonicaljson"
	"github.com/myelin-im/myelin/internal/signing"
	"github.com/myelin-im/myelin/roomserver/pdu"
)

// maxSignatures bounds how many signatures of one server are tried.
const maxSignatures = 10

// signaturesOf lists what a server signed of a canonical object, a bounded number.
func signaturesOf(canonical []byte, server string) []signing.Signature {
	list := signing.Signatures(canonicaljson.Member(canonical, "signatures"), server)
	return list[:min(len(list), maxSignatures)]
}

// VerifyEvents checks the signatures that each event needs (pdu.Event.RequiredSigners) and returns an error for each,
// nil for the good ones. From room version 5 on, keys must have been valid at the event's origin_server_ts. It checks
// in parallel and fetches keys that it needs. Errors wrap signing.ErrMissing, signing.ErrInvalid, ErrUnknownKey or
// ErrNotValid; ErrUnknownKey may be temporary.
//
// spec: server-server-api v1.19 "Validating hashes and signatures on received events"
func (r *Ring) VerifyEvents(ctx context.Context, events []*pdu.Event) []error {
	errs := make([]error, len(events))
	r.prefetch(ctx, events)
	if len(events) == 1 {
		errs[0] = r.verifyEvent(ctx, events[0])
		return errs
	}
	var next atomic.Int64
	var group sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0), len(events)) {
		group.Go(func() {
			for i := next.Add(1) - 1; i < int64(len(events)); i = next.Add(1) - 1 {
				errs[i] = r.verifyEvent(ctx, events[i])
			}
		})
	}
	group.Wait()
	return errs
}

// timeOf is when the keys that signed an event must have been valid.
func timeOf(e *pdu.Event) int64 {
	if !e.Version().KeyValidityEnforced {
		return Whenever
	}
	return max(e.OriginServerTS, 1) // 0 and below are no times of ours, but old enough for every key
}

// prefetch asks for keys that are not known, of all servers at the same time, so that the workers that check need not
// wait for one server after the other.
func (r *Ring) prefetch(ctx context.Context, events []*pdu.Event) {
	wanted := make(map[string]need)
	for _, e := range events {
		at := timeOf(e)
		for _, server := range e.RequiredSigners() {
			if _, asked := wanted[server]; asked || server == r.cfg.ServerName {
				continue
			}
			signatures := e.Signatures(server)
			for _, s := range signatures[:min(len(signatures), maxSignatures)] {
				if key, _, err := r.look(ctx, server, s.KeyID, at); err == nil && key == nil {
					wanted[server] = need{s.KeyID, at}
					break
				}
			}
		}
	}
	if len(wanted) < 2 {
		return // one is as well fetched where it is needed
	}
	var group sync.WaitGroup
	asking := make(chan struct{}, maxFetches)
	for server, n := range wanted {
		asking <- struct{}{}
		group.Go(func() {
			_, _ = r.Key(ctx, server, n.id, n.at) // who needs it asks again and learns why it is missing
			<-asking
		})
	}
	group.Wait()
}

func (r *Ring) verifyEvent(ctx context.Context, e *pdu.Event) error {
	at := timeOf(e)
	for _, server := range e.RequiredSigners() {
		if err := r.verifySigner(ctx, e, server, at); err != nil {
			return fmt.Errorf("signature of %.255s: %w", server, err)
		}
	}
	return nil
}

// verifySigner looks for one good signature of a server.
func (r *Ring) verifySigner(ctx context.Context, e *pdu.Event, server string, at int64) error {
	signatures := e.Signatures(server)
	err := signing.ErrMissing
	for _, s := range signatures[:min(len(signatures), maxSignatures)] {
		key, bad := r.Key(ctx, server, s.KeyID, at)
		if bad == nil {
			bad = e.VerifySignature(server, s.KeyID, key)
		}
		if bad == nil {
			return nil
		}
		if !errors.Is(err, ErrUnknownKey) { // the one that may get better
			err = bad
		}
	}
	return err
}
