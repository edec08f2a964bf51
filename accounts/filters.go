package accounts

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"

	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/internal/ratelimit"
	"github.com/myelin-im/myelin/storage"
	"github.com/myelin-im/myelin/syncapi/filter"
)

// maxFilters bounds the filters of one user. Equal ones are one, so that clients which upload theirs at each start
// stay far below.
const maxFilters = 1000

func (a *API) filterEndpoints() []httpapi.Endpoint {
	const path = v3 + "/user/{userId}/filter"
	return []httpapi.Endpoint{
		httpapi.New("POST", path, httpapi.User, ratelimit.Account, a.postFilter),
		httpapi.New("GET", path+"/{filterId}", httpapi.User, ratelimit.Read, a.getFilter),
	}
}

type postFilterRequest struct {
	UserID string          `path:"userId"`
	Body   json.RawMessage `body:"raw"`
}

type postFilterResponse struct {
	FilterID string `json:"filter_id"`
}

// postFilter stores a filter under the hash of its text: the same filter gets the same id, without looking for it.
func (a *API) postFilter(ctx context.Context, by *httpapi.Caller, in *postFilterRequest) (*postFilterResponse, error) {
	if err := own(by, in.UserID); err != nil {
		return nil, err
	}
	if _, err := filter.Parse(in.Body); err != nil {
		return nil, err
	}
	h := sha256.Sum256(in.Body)
	id := base64.RawURLEncoding.EncodeToString(h[:12])
	known, err := a.db.Get(ctx, `SELECT 1 FROM filters WHERE user_id = $1 AND filter_id = $2`, []any{in.UserID, id}, nil)
	if err == nil && !known {
		err = a.db.Write(ctx, func(tx *storage.Tx) error {
			var count int64
			if _, err := tx.Get(`SELECT COUNT(*) FROM filters WHERE user_id = $1`, []any{in.UserID}, &count); err != nil {
				return err
			}
			if count >= maxFilters {
				return mxerr.TooLarge("You have too many filters")
			}
			_, err := tx.Exec(`INSERT INTO filters (user_id, filter_id, content) VALUES ($1, $2, $3) ON CONFLICT (user_id, filter_id) DO NOTHING`,
				in.UserID, id, []byte(in.Body))
			return err
		})
	}
	if err != nil {
		return nil, fmt.Errorf("write filter: %w", err)
	}
	return &postFilterResponse{id}, nil
}

// Filter returns the text of a stored filter, or nil if there is none. It parses with filter.Parse.
func Filter(tx *storage.Tx, userID, filterID string) (json.RawMessage, error) {
	var content json.RawMessage
	_, err := tx.Get(`SELECT content FROM filters WHERE user_id = $1 AND filter_id = $2`, []any{userID, filterID}, &content)
	return content, err
}

type getFilterRequest struct {
	UserID   string `path:"userId"`
	FilterID string `path:"filterId"`
}

func (a *API) getFilter(ctx context.Context, by *httpapi.Caller, in *getFilterRequest) (*rawObject, error) {
	if err := own(by, in.UserID); err != nil {
		return nil, err
	}
	var content json.RawMessage
	err := a.db.Read(ctx, func(tx *storage.Tx) (err error) {
		content, err = Filter(tx, in.UserID, in.FilterID)
		return err
	})
	switch {
	case err != nil:
		return nil, fmt.Errorf("read filter: %w", err)
	case content == nil:
		return nil, mxerr.NotFound("There is no such filter")
	}
	return (*rawObject)(&content), nil
}
