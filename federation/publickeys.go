package federation

import (
	"context"
	"encoding/json"
	"sync"

	"github.com/myelin-im/myelin/federation/keys"
	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/internal/ratelimit"
)

// keyEndpoints publish keys. They are for everyone: who asks for keys cannot yet check signatures.
//
// spec: server-server-api v1.19 "Retrieving server keys"
func (a *API) keyEndpoints() []httpapi.Endpoint {
	return []httpapi.Endpoint{
		httpapi.New("GET", "/_matrix/key/v2/server", httpapi.Anyone, ratelimit.None, a.ownKeys),
		// Older servers append the id of a key that they look for; they get all keys.
		httpapi.New("GET", "/_matrix/key/v2/server/{keyId}", httpapi.Anyone, ratelimit.None, a.ownKeysFor),
		httpapi.New("GET", "/_matrix/key/v2/query/{serverName}", httpapi.Anyone, ratelimit.Federation, a.queryKeysOf),
		httpapi.New("POST", "/_matrix/key/v2/query", httpapi.Anyone, ratelimit.Federation, a.queryKeys),
	}
}

// jsonAnswer is an answer that is JSON already.
type jsonAnswer json.RawMessage

// AppendJSON appends the answer.
func (a jsonAnswer) AppendJSON(dst []byte) ([]byte, error) { return append(dst, a...), nil }

func (a *API) ownKeys(context.Context, *httpapi.Caller, *httpapi.Empty) (*jsonAnswer, error) {
	own, err := a.keys.Own()
	return (*jsonAnswer)(&own), err
}

type ownKeysRequest struct {
	KeyID string `path:"keyId"`
}

func (a *API) ownKeysFor(ctx context.Context, by *httpapi.Caller, _ *ownKeysRequest) (*jsonAnswer, error) {
	return a.ownKeys(ctx, by, nil)
}

type queryKeysOfRequest struct {
	Server string `path:"serverName"`
	Until  int64  `query:"minimum_valid_until_ts"`
}

type queryKeysAnswer struct {
	Keys []json.RawMessage `json:"server_keys"`
}

func (a *API) queryKeysOf(ctx context.Context, _ *httpapi.Caller, in *queryKeysOfRequest) (*queryKeysAnswer, error) {
	list, err := a.keys.Notarised(ctx, in.Server, keys.Criteria{All: in.Until})
	if err != nil {
		return nil, err
	}
	if list == nil {
		list = []json.RawMessage{}
	}
	return &queryKeysAnswer{list}, nil
}

type queryKeysRequest struct {
	Keys map[string]map[string]struct {
		Until int64 `json:"minimum_valid_until_ts"`
	} `json:"server_keys" required:"true"`
}

// Limits of one request for keys of several servers: servers, and those that are asked at the same time.
const (
	maxQueriedServers = 100
	parallelQueries   = 10
)

func (a *API) queryKeys(ctx context.Context, _ *httpapi.Caller, in *queryKeysRequest) (*queryKeysAnswer, error) {
	if len(in.Keys) > maxQueriedServers {
		return nil, mxerr.InvalidParam("Keys of too many servers at once")
	}
	answer := &queryKeysAnswer{Keys: []json.RawMessage{}}
	var mu sync.Mutex // guards answer
	var group sync.WaitGroup
	asking := make(chan struct{}, parallelQueries)
	for server, wanted := range in.Keys {
		criteria := keys.Criteria{Keys: make(map[string]int64, len(wanted))}
		for id, one := range wanted {
			criteria.Keys[id] = one.Until
		}
		asking <- struct{}{}
		group.Go(func() {
			defer func() { <-asking }()
			list, err := a.keys.Notarised(ctx, server, criteria)
			if err != nil {
				a.log.WithError(err).Debug("keys that were asked for cannot be had")
				return
			}
			mu.Lock()
			defer mu.Unlock()
			answer.Keys = append(answer.Keys, list...)
		})
	}
	group.Wait()
	return answer, nil
}
