package delayed

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/myelin-im/myelin/accounts"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/internal/ratelimit"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/storage"
)

const (
	// batch is how many events are sent before it is asked again what is due, parallel in how many rooms at a time.
	batch    = 100
	parallel = 8
	// maxPause bounds how long Run sleeps, since clocks can be set.
	maxPause = time.Minute
	// retryEvery and retryFor say how an event is tried again that could not be sent for a reason of the server's.
	// maxFailed bounds such events; further ones are given up.
	retryEvery = 5 * time.Second
	retryFor   = 10 * time.Minute
	maxFailed  = 1000
	// purgeEvery is how often old finalised events are deleted.
	purgeEvery = time.Hour
)

// Run sends what is due until ctx ends.
func (a *API) Run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	purge := a.now().Add(purgeEvery)
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.wake:
		case <-timer.C:
		}
		pause, err := a.sendDue(ctx)
		if now := a.now(); err == nil && now.After(purge) {
			purge = now.Add(purgeEvery)
			err = a.purge(ctx)
		}
		if err != nil && ctx.Err() == nil {
			a.log.WithError(err).Warn("Delayed events failed and will be tried again")
			pause = retryEvery
		}
		timer.Reset(pause)
	}
}

// sendDue sends everything that is due, and returns how long there is nothing to do.
func (a *API) sendDue(ctx context.Context) (pause time.Duration, err error) {
	for {
		now := a.now().UnixMilli()
		var due []*event
		next := now + maxPause.Milliseconds()
		err := a.db.Read(ctx, func(tx *storage.Tx) (err error) {
			due, err = query(tx, `SELECT `+eventColumns+` FROM delayed_events WHERE finalised_ts IS NULL AND due_ts <= $1
				ORDER BY due_ts, delay_id LIMIT $2`, now, int64(batch+len(a.failed)))
			if err != nil {
				return err
			}
			var first *int64
			if _, err := tx.Get(`SELECT min(due_ts) FROM delayed_events WHERE finalised_ts IS NULL AND due_ts > $1`, []any{now}, &first); err != nil {
				return err
			}
			if first != nil {
				next = min(next, *first)
			}
			return nil
		})
		if err != nil {
			return 0, fmt.Errorf("read what is due: %w", err)
		}
		ready := due[:0]
		for _, e := range due {
			if retry := a.failed[e.id]; retry > now {
				next = min(next, retry)
			} else {
				ready = append(ready, e)
			}
		}
		if len(ready) == 0 {
			return max(time.Duration(next-a.now().UnixMilli()), 0) * time.Millisecond, nil
		}
		a.sendBatch(ctx, ready)
		if ctx.Err() != nil {
			return 0, ctx.Err()
		}
	}
}

// sendBatch sends events, those of one room one after the other in the order in which they are due.
func (a *API) sendBatch(ctx context.Context, due []*event) {
	var rooms []string
	byRoom := map[string][]*event{}
	for _, e := range due {
		if byRoom[e.room] == nil {
			rooms = append(rooms, e.room)
		}
		byRoom[e.room] = append(byRoom[e.room], e)
	}
	var mu sync.Mutex // guards a.failed
	var group sync.WaitGroup
	slots := make(chan struct{}, parallel)
	for _, room := range rooms {
		slots <- struct{}{}
		group.Go(func() {
			defer func() { <-slots }()
			for _, e := range byRoom[room] {
				a.sendOne(ctx, e, &mu)
			}
		})
	}
	group.Wait()
}

// sendOne sends an event whose time has come, or ends it with the error that forbids that.
func (a *API) sendOne(ctx context.Context, e *event, mu *sync.Mutex) {
	err := a.fire(ctx, e)
	if ctx.Err() != nil {
		return
	}
	refusal := mxerr.As(err)
	mu.Lock()
	defer mu.Unlock()
	switch {
	case err == nil, errors.Is(err, errChanged):
		delete(a.failed, e.id)
		return
	case refusal == nil || refusal.Status >= http.StatusInternalServerError:
		now := a.now().UnixMilli()
		a.log.WithError(err).WithField("room_id", e.room).Warn("A delayed event could not be sent")
		if now < max(e.due, a.started)+retryFor.Milliseconds() && len(a.failed) < maxFailed {
			a.failed[e.id] = now + retryEvery.Milliseconds()
			return
		}
		refusal = mxerr.New(http.StatusInternalServerError, "M_UNKNOWN", "The server could not send the event")
	}
	delete(a.failed, e.id)
	mu.Unlock()
	err = a.refuse(ctx, e, refusal)
	mu.Lock()
	if err != nil && ctx.Err() == nil {
		a.failed[e.id] = a.now().UnixMilli() + retryEvery.Milliseconds()
		a.log.WithError(err).Warn("A delayed event could not be ended")
	}
}

// refuse finalises an event that could not be sent.
func (a *API) refuse(ctx context.Context, e *event, refusal *mxerr.Error) error {
	body := map[string]any{"errcode": refusal.Code, "error": refusal.Text}
	for k, v := range refusal.Fields {
		body[k] = v
	}
	raw, err := json.Marshal(body)
	if err != nil {
		return fmt.Errorf("encode the error of a delayed event: %w", err)
	}
	_, err = a.change(ctx, `UPDATE delayed_events SET finalised_ts = $1, error = $2 WHERE delay_id = $3 AND finalised_ts IS NULL AND scheduled_ts = $4`,
		a.now().UnixMilli(), raw, e.id, e.scheduled)
	return err
}

// errChanged says that an event was finalised or restarted since it was read.
var errChanged = errors.New("the delayed event has changed")

// fire sends an event and finalises it in the same unit. The error is an *mxerr.Error where the user may not send it,
// errChanged where it is not what it was when it was read.
func (a *API) fire(ctx context.Context, e *event) error {
	if e.finalised != nil {
		return errChanged
	}
	var refused error
	err := a.db.Read(ctx, func(tx *storage.Tx) (err error) {
		refused, err = accounts.MaySend(tx, e.user)
		return err
	})
	if err != nil {
		return fmt.Errorf("account of a delayed event: %w", err)
	}
	if refused != nil {
		return refused
	}
	class := ratelimit.Message
	if e.stateKey != nil {
		class = ratelimit.State
	}
	if ok, after := a.limiter.Allow(class, e.user); !ok {
		return mxerr.LimitExceeded(after)
	}
	const finalise = `UPDATE delayed_events SET finalised_ts = $1, event_id = $2 WHERE delay_id = $3 AND finalised_ts IS NULL AND scheduled_ts = $4`
	id, err := a.send(ctx, e.room, roomserver.Draft{
		Sender: e.user, Type: e.typ, StateKey: e.stateKey, Content: e.content, OriginServerTS: e.originTS, StickyMS: e.sticky, DelayID: e.id,
		Beside: func(u *storage.Unit, eventID string) {
			u.Require(finalise, []any{a.now().UnixMilli(), eventID, e.id, e.scheduled}, 1, errChanged)
		},
	})
	if err != nil || e.stateKey == nil {
		return err
	}
	// State that stands already is not sent again, and then there was no unit.
	_, err = a.change(ctx, finalise, a.now().UnixMilli(), id, e.id, e.scheduled)
	return err
}

// purge deletes finalised events that are too old or too many.
func (a *API) purge(ctx context.Context) error {
	const most = 1000
	for {
		var n int64
		err := a.db.Write(ctx, func(tx *storage.Tx) (err error) {
			n, err = tx.Exec(`DELETE FROM delayed_events WHERE delay_id IN (
				SELECT delay_id FROM (
					SELECT delay_id, finalised_ts, row_number() OVER (PARTITION BY user_id ORDER BY finalised_ts DESC) AS place
					FROM delayed_events WHERE finalised_ts IS NOT NULL) ended
				WHERE place > $1 OR finalised_ts < $2 LIMIT $3)`,
				int64(maxFinalised), a.now().Add(-finalisedLife).UnixMilli(), int64(most))
			return err
		})
		if err != nil {
			return fmt.Errorf("delete old delayed events: %w", err)
		}
		if n < most {
			return nil
		}
	}
}
