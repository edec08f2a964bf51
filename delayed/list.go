package delayed

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/storage"
)

// shown is a delayed event as its owner sees it, with the names that its times had in former versions of MSC4140.
type shown struct {
	DelayID   string          `json:"delay_id"`
	RoomID    string          `json:"room_id"`
	Type      string          `json:"type"`
	StateKey  *string         `json:"state_key,omitempty"`
	DelayMS   int64           `json:"delay_ms"`
	Scheduled int64           `json:"scheduled_at"`
	Content   json.RawMessage `json:"content"`

	OldDelay   int64 `json:"delay"`
	OldRunning int64 `json:"running_since"`
}

// shownOne is the answer about a single event: finalised ones have more to tell.
type shownOne struct {
	shown
	end
	OldSince     int64 `json:"delayed_since_ts"`
	OldFinalised *end  `json:"finalised,omitempty"`
}

// end is how an event was finalised.
type end struct {
	Error       json.RawMessage `json:"error,omitempty"`
	EventID     *string         `json:"event_id,omitempty"`
	FinalisedTS *int64          `json:"finalised_ts,omitempty"`
}

// finalised is a list entry of former versions of MSC4140.
type finalised struct {
	Event   shown           `json:"delayed_event"`
	Outcome string          `json:"outcome"`
	Reason  string          `json:"reason"`
	Error   json.RawMessage `json:"error,omitempty"`
	EventID *string         `json:"event_id,omitempty"`
	TS      int64           `json:"origin_server_ts"`
}

func show(e *event) shown {
	return shown{e.id, e.room, e.typ, e.stateKey, e.delay, e.scheduled, e.content, e.delay, e.scheduled}
}

func showFinalised(e *event) finalised {
	f := finalised{Event: show(e), Outcome: "cancel", Reason: "action", Error: e.error, EventID: e.eventID, TS: *e.finalised}
	switch {
	case e.error != nil:
		f.Reason = "error"
	case e.eventID != nil:
		f.Outcome = "send"
		if *e.finalised >= e.due {
			f.Reason = "delay"
		}
	}
	return f
}

// get: MSC4140, GET /delayed_events/{delay_id}.
func (a *API) get(ctx context.Context, by *httpapi.Caller, in *delayRequest) (*shownOne, error) {
	var e *event
	err := a.db.Read(ctx, func(tx *storage.Tx) (err error) {
		e, err = find(tx, in.DelayID)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read a delayed event: %w", err)
	}
	if e == nil || e.user != by.UserID {
		return nil, errNotFound
	}
	out := &shownOne{shown: show(e), OldSince: e.scheduled}
	if e.finalised != nil {
		out.end = end{e.error, e.eventID, e.finalised}
		out.OldFinalised = &out.end
	}
	return out, nil
}

type listRequest struct {
	Status string   `query:"status" enum:"scheduled|finalised"`
	IDs    []string `query:"delay_id"`
}

type listResponse struct {
	// Events is MSC4140's answer; the others are what former versions had, by status.
	Events    []shown     `json:"delayed_events"`
	Scheduled []shown     `json:"scheduled,omitempty"`
	Finalised []finalised `json:"finalised,omitempty"`
}

// maxListedFinalised bounds the finalised events in one answer, the newest of them.
const maxListedFinalised = 100

// list: MSC4140, GET /delayed_events.
func (a *API) list(ctx context.Context, by *httpapi.Caller, in *listRequest) (*listResponse, error) {
	var scheduled, ended []*event
	err := a.db.Read(ctx, func(tx *storage.Tx) (err error) {
		scheduled, err = query(tx, `SELECT `+eventColumns+` FROM delayed_events WHERE user_id = $1 AND finalised_ts IS NULL ORDER BY due_ts, delay_id`, by.UserID)
		if err == nil && in.Status != "scheduled" {
			ended, err = query(tx, `SELECT `+eventColumns+` FROM delayed_events WHERE user_id = $1 AND finalised_ts IS NOT NULL
				ORDER BY finalised_ts DESC, delay_id LIMIT $2`, by.UserID, int64(maxListedFinalised))
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list delayed events: %w", err)
	}
	wanted := func(e *event) bool { return len(in.IDs) == 0 || slices.Contains(in.IDs, e.id) }
	out := &listResponse{Events: []shown{}}
	for _, e := range scheduled {
		if wanted(e) && in.Status != "finalised" {
			out.Events = append(out.Events, show(e))
		}
	}
	out.Scheduled = out.Events
	for _, e := range ended {
		if wanted(e) {
			out.Finalised = append(out.Finalised, showFinalised(e))
		}
	}
	return out, nil
}
