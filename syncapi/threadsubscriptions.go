package syncapi

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/push/threads"
	"github.com/myelin-im/myelin/storage"
)

// threadsExtension is the request of the extension thread_subscriptions (MSC4308).
type threadsExtension struct {
	Enabled bool `json:"enabled"`
	Limit   *int `json:"limit"`
}

const (
	defaultSubscriptions = 100
	maxSubscriptions     = 500
	// subscriptionsPrefix begins the tokens for paging through subscriptions: what lies before a position.
	subscriptionsPrefix = "h"
)

// shownSubscription is a change as clients see it: the position orders the states of one thread.
type shownSubscription struct {
	Automatic *bool `json:"automatic,omitempty"`
	BumpStamp int64 `json:"bump_stamp"`
}

// shownSubscriptions are changes by room and thread.
type shownSubscriptions struct {
	Subscribed   map[string]map[string]shownSubscription `json:"subscribed,omitempty"`
	Unsubscribed map[string]map[string]shownSubscription `json:"unsubscribed,omitempty"`
	PrevBatch    string                                  `json:"prev_batch,omitempty"`
	End          string                                  `json:"end,omitempty"`
}

func showSubscriptions(changes []threads.Change) (out shownSubscriptions) {
	put := func(in *map[string]map[string]shownSubscription, c *threads.Change, s shownSubscription) {
		if *in == nil {
			*in = map[string]map[string]shownSubscription{}
		}
		if (*in)[c.RoomID] == nil {
			(*in)[c.RoomID] = map[string]shownSubscription{}
		}
		(*in)[c.RoomID][c.Thread] = s
	}
	for i := range changes {
		c := &changes[i]
		if c.Subscribed {
			put(&out.Subscribed, c, shownSubscription{&c.Automatic, c.Pos})
		} else {
			put(&out.Unsubscribed, c, shownSubscription{nil, c.Pos})
		}
	}
	return out
}

// before is the token for what comes before the oldest of some changes.
func before(changes []threads.Change) string {
	return subscriptionsPrefix + strconv.FormatInt(changes[len(changes)-1].Pos, 10)
}

// threadSubscriptions is the extension thread_subscriptions: the latest of what changed, or of all there is for a client
// that knows none yet.
func (l *slidingLook) threadSubscriptions(ctx context.Context) ([]byte, error) {
	x := &l.req.extensions.Threads
	changed := l.initial() || l.api.tracker.userChanged(l.user, l.token.pos)
	if !x.Enabled {
		if changed {
			l.flag(knowsThreads, false) // what changes now it will not hear of
		}
		return nil, nil
	}
	limit := defaultSubscriptions
	if x.Limit != nil {
		if limit = min(*x.Limit, maxSubscriptions); limit < 1 {
			return nil, mxerr.InvalidParam("limit must be positive")
		}
	}
	since, all := l.token.pos, l.change.flags&knowsThreads == 0
	if all {
		since = 0
	} else if !changed {
		return nil, nil
	}
	l.flag(knowsThreads, true)
	var changes []threads.Change
	complete := false
	err := l.api.db.Read(ctx, func(tx *storage.Tx) (err error) {
		changes, complete, err = threads.Changes(tx, l.user, since, l.upTo, limit)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("thread subscriptions of %s: %w", l.user, err)
	}
	if len(changes) == 0 {
		return nil, nil
	}
	shown := showSubscriptions(changes)
	if !complete {
		shown.PrevBatch = before(changes)
	}
	raw, err := json.Marshal(shown)
	if err != nil {
		return nil, fmt.Errorf("encode thread subscriptions: %w", err)
	}
	return append([]byte(`"io.element.msc4308.thread_subscriptions":`), raw...), nil
}

type subscriptionsRequest struct {
	Dir   string `query:"dir" required:"true" enum:"b"`
	From  string `query:"from"`
	To    string `query:"to"`
	Limit int    `query:"limit" default:"100" min:"1"`
}

// listSubscriptions: MSC4308, GET /thread_subscriptions.
func (a *API) listSubscriptions(ctx context.Context, by *httpapi.Caller, in *subscriptionsRequest) (*shownSubscriptions, error) {
	upTo, after := int64(math.MaxInt64), int64(0)
	if in.From != "" {
		digits, ok := strings.CutPrefix(in.From, subscriptionsPrefix)
		pos, err := strconv.ParseInt(digits, 10, 64)
		if !ok || err != nil || pos < 1 {
			return nil, mxerr.InvalidParam("from is not a token of thread subscriptions")
		}
		upTo = pos - 1
	}
	if in.To != "" {
		t, ok := parseSlidingToken(in.To)
		if !ok || t.generation != a.db.Generation() {
			return nil, mxerr.InvalidParam("to is not a pos of sliding sync")
		}
		after = t.pos
	}
	var changes []threads.Change
	complete := false
	err := a.db.Read(ctx, func(tx *storage.Tx) (err error) {
		changes, complete, err = threads.Changes(tx, by.UserID, after, upTo, min(in.Limit, maxSubscriptions))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("thread subscriptions of %s: %w", by.UserID, err)
	}
	out := showSubscriptions(changes)
	if !complete {
		out.End = before(changes)
	}
	return &out, nil
}
