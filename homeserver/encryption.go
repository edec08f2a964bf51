package homeserver

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"

	"github.com/myelin-im/myelin/federation/client"
	"github.com/myelin-im/myelin/internal/mxerr"
)

// remoteKeys is what package e2ee asks other servers for.
type remoteKeys struct {
	client *client.Client
}

// QueryKeys implements e2ee.Remote.
func (r remoteKeys) QueryKeys(ctx context.Context, server string, body json.RawMessage) (json.RawMessage, error) {
	return r.do(ctx, client.Request{Server: server, Method: http.MethodPost, Path: "/_matrix/federation/v1/user/keys/query", Body: body})
}

// ClaimKeys implements e2ee.Remote.
func (r remoteKeys) ClaimKeys(ctx context.Context, server string, body json.RawMessage) (json.RawMessage, error) {
	return r.do(ctx, client.Request{Server: server, Method: http.MethodPost, Path: "/_matrix/federation/v1/user/keys/claim", Body: body})
}

// UserDevices implements e2ee.Remote.
func (r remoteKeys) UserDevices(ctx context.Context, server, userID string) (json.RawMessage, error) {
	return r.do(ctx, client.Request{Server: server, Method: http.MethodGet, Path: client.Path("/_matrix/federation/v1/user/devices/%s", userID)})
}

// do makes a request. What the other server says that went wrong, clients are told.
func (r remoteKeys) do(ctx context.Context, req client.Request) (json.RawMessage, error) {
	answer, err := r.client.Do(ctx, req)
	var refused *client.Error
	if errors.As(err, &refused) && refused.Code != "" && refused.Status >= 400 {
		return nil, mxerr.New(refused.Status, refused.Code, refused.Text).With(err)
	}
	return answer, err
}
