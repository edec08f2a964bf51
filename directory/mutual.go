package directory

import (
	"context"
	"encoding/base64"
	"slices"

	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/roomserver/pdu"
)

// mutualPage is how many rooms one answer has at most.
const mutualPage = 500

type mutualRoomsRequest struct {
	UserID string `query:"user_id"`
	From   string `query:"from"`
}

type mutualRoomsResponse struct {
	Joined    []string `json:"joined"`
	Count     int      `json:"count"`
	NextBatch string   `json:"next_batch,omitempty"`
}

// mutualRooms: client-server API v1.19, GET /mutual_rooms. Pages follow the order of room ids, and a token is the
// last id.
func (a *API) mutualRooms(ctx context.Context, by *httpapi.Caller, in *mutualRoomsRequest) (*mutualRoomsResponse, error) {
	return a.mutual(ctx, by.UserID, in.UserID, in.From, mutualPage)
}

func (a *API) mutual(ctx context.Context, by, other, from string, limit int) (*mutualRoomsResponse, error) {
	if !pdu.ValidUserID(other) {
		return nil, mxerr.InvalidParam("user_id is not a user ID")
	}
	if other == by {
		return nil, mxerr.InvalidParam("user_id is your own")
	}
	after, err := base64.RawURLEncoding.DecodeString(from)
	if err != nil || len(after) > pdu.MaxFieldSize || len(after) > 0 && after[0] != '!' {
		return nil, mxerr.InvalidParam("from is not a token of this endpoint")
	}
	ids, err := a.rooms.MutualRooms(ctx, by, other)
	if err != nil {
		return nil, err
	}
	out := &mutualRoomsResponse{Joined: []string{}, Count: len(ids)}
	i, found := slices.BinarySearch(ids, string(after))
	if found {
		i++
	}
	if ids = ids[i:]; len(ids) > limit {
		ids = ids[:limit]
		out.NextBatch = base64.RawURLEncoding.EncodeToString([]byte(ids[limit-1]))
	}
	out.Joined = append(out.Joined, ids...)
	return out, nil
}

type unstableMutualRoomsRequest struct {
	UserID string `query:"user_id"`
	From   string `query:"batch_token"`
}

type unstableMutualRoomsResponse struct {
	Joined    []string `json:"joined"`
	NextBatch string   `json:"next_batch_token,omitempty"`
}

func (a *API) unstableMutualRooms(ctx context.Context, by *httpapi.Caller, in *unstableMutualRoomsRequest) (*unstableMutualRoomsResponse, error) {
	r, err := a.mutual(ctx, by.UserID, in.UserID, in.From, mutualPage)
	if err != nil {
		return nil, err
	}
	return &unstableMutualRoomsResponse{r.Joined, r.NextBatch}, nil
}
