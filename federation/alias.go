package federation

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"

	"github.com/tidwall/gjson"

	"github.com/myelin-im/myelin/federation/client"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/roomserver/pdu"
)

// maxAliasServers bounds the servers that are believed to be in the room of an alias.
const maxAliasServers = 50

// ResolveAlias asks the server of a room alias for the room and for servers that are in it. The error is a *mxerr.Error:
// 404 M_NOT_FOUND where there is no such alias, or 502 M_UNKNOWN.
//
// spec: server-server-api v1.19 "GET /query/directory"
func (a *API) ResolveAlias(ctx context.Context, alias string) (roomID string, servers []string, err error) {
	server := pdu.ServerOf(alias)
	answer, err := a.client.Do(ctx, client.Request{
		Server: server, Method: http.MethodGet, Path: v1 + "/query/directory?" + url.Values{"room_alias": {alias}}.Encode(), MaxBytes: 1 << 20,
	})
	var said *client.Error
	if errors.As(err, &said) && said.Status == http.StatusNotFound {
		return "", nil, mxerr.NotFound("There is no such room alias").With(err)
	}
	if err != nil {
		return "", nil, mxerr.New(http.StatusBadGateway, "M_UNKNOWN", "The server of the room alias gave no answer").With(err)
	}
	found := gjson.ParseBytes(answer)
	roomID = found.Get("room_id").Str
	if len(roomID) < 2 || len(roomID) > pdu.MaxFieldSize || roomID[0] != '!' {
		return "", nil, mxerr.New(http.StatusBadGateway, "M_UNKNOWN", "The server of the room alias named no room").With(fmt.Errorf("%w: %.100q", errUnsound, roomID))
	}
	found.Get("servers").ForEach(func(_, name gjson.Result) bool {
		if pdu.ValidServerName(name.Str) {
			servers = append(servers, name.Str)
		}
		return len(servers) < maxAliasServers
	})
	return roomID, append(servers, server), nil
}
