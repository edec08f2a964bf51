package reports

import (
	"context"
	"fmt"
	"math"

	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/storage"
)

// listRequest asks for reports, the newest first.
type listRequest struct {
	From  int64 `query:"from" min:"0"` // next_token of the page before; 0: the newest
	Limit int   `query:"limit" default:"100" min:"1" max:"1000"`
}

type listResponse struct {
	Reports []listed `json:"reports"`
	// Next is where the next page begins; 0: this was the last.
	Next int64 `json:"next_token,omitempty"`
}

// listed is a report as administrators see it.
type listed struct {
	ID         int64   `json:"id"`
	ReceivedTS int64   `json:"received_ts"` // milliseconds
	Reporter   string  `json:"reporter"`
	RoomID     *string `json:"room_id,omitempty"`  // of events and rooms
	EventID    *string `json:"event_id,omitempty"` // of events
	UserID     *string `json:"user_id,omitempty"`  // the user reported, or who sent the event
	Reason     string  `json:"reason"`
}

// list shows administrators what was reported.
func (a *API) list(ctx context.Context, _ *httpapi.Caller, in *listRequest) (*listResponse, error) {
	from := in.From
	if from == 0 {
		from = math.MaxInt64
	}
	var out listResponse
	err := a.db.Read(ctx, func(tx *storage.Tx) error {
		out.Reports = []listed{}
		rows := tx.Query(`SELECT id, ts, reporter, room_id, event_id, user_id, reason FROM reports WHERE id <= $1 ORDER BY id DESC LIMIT $2`,
			from, in.Limit+1)
		for rows.Next() {
			var r listed
			rows.Scan(&r.ID, &r.ReceivedTS, &r.Reporter, &r.RoomID, &r.EventID, &r.UserID, &r.Reason)
			out.Reports = append(out.Reports, r)
		}
		return rows.Close()
	})
	if err != nil {
		return nil, fmt.Errorf("list reports: %w", err)
	}
	if len(out.Reports) > in.Limit {
		out.Next = out.Reports[in.Limit].ID
		out.Reports = out.Reports[:in.Limit]
	}
	return &out, nil
}
