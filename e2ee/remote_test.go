package e2ee

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"testing"

	"github.com/myelin-im/myelin/accounts"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/storage"
	"github.com/myelin-im/myelin/storage/storagetest"
)

// slowServer is another server whose first answer about devices does not come.
type slowServer struct {
	asked chan struct{} // gets a value for each question
	slow  chan struct{} // holds one while the next question is not to be answered
}

// QueryKeys implements Remote.
func (s *slowServer) QueryKeys(context.Context, string, json.RawMessage) (json.RawMessage, error) {
	return nil, errors.New("not asked for")
}

// ClaimKeys implements Remote.
func (s *slowServer) ClaimKeys(context.Context, string, json.RawMessage) (json.RawMessage, error) {
	return nil, errors.New("not asked for")
}

// UserDevices implements Remote.
func (s *slowServer) UserDevices(ctx context.Context, _, userID string) (json.RawMessage, error) {
	s.asked <- struct{}{}
	select {
	case <-s.slow:
		<-ctx.Done()
		return nil, fmt.Errorf("ask: %w", ctx.Err())
	default:
		return json.RawMessage(`{"user_id":"` + userID + `","stream_id":7,"devices":[]}`), nil
	}
}

// TestFetchOutlivesWhoBegan lets the client that asked first hang up: another one that waits for the same answer gets it.
func TestFetchOutlivesWhoBegan(t *testing.T) {
	storagetest.Each(t, []storage.Schema{roomserver.Schema, accounts.Schema, Schema}, func(t *testing.T, db *storage.DB) {
		a := newAPI(t, db)
		remote := &slowServer{asked: make(chan struct{}, 2), slow: make(chan struct{}, 1)}
		remote.slow <- struct{}{}
		a.remote = remote
		first, hangUp := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() {
			_, err := a.fetchOnce(first, "other", "@user:other")
			ended <- err
		}()
		<-remote.asked
		found := make(chan *identity, 1)
		go func() {
			i, err := a.fetchOnce(t.Context(), "other", "@user:other")
			if err != nil {
				t.Errorf("the second to ask: %v", err)
			}
			found <- i
		}()
		hangUp()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("the first to ask: %v", err)
		}
		if i := <-found; i == nil || i.streamID != 7 {
			t.Errorf("found %v", i)
		}
	})
}
