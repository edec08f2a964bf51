package e2ee

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/tidwall/gjson"

	"github.com/myelin-im/myelin/internal/cache"
	"github.com/myelin-im/myelin/storage"
)

const (
	// maxUndelivered bounds the EDUs with messages to devices that wait for one server.
	maxUndelivered = 100_000
	// maxUntold is how many changes of devices may wait for one server before only the last of each user is kept.
	maxUntold = 250
	// weighAfter is how many EDUs for a server are written before what waits for it is looked at again.
	weighAfter = 250
	// undeliveredPage bounds the EDUs that are looked at or deleted together.
	undeliveredPage = 1000
	// expireEvery is how often it is looked whether messages have waited for too long.
	expireEvery = time.Hour
	// maxBacklogs bounds the servers of which it is known how much was written for them.
	maxBacklogs = 20_000
	// messageEDU is the type of the EDUs with messages to devices.
	messageEDU = "m.direct_to_device"
)

// backlogs finds servers for which much may be waiting, because they take nothing.
type backlogs struct {
	limit int64                               // of EDUs with messages
	left  *cache.Cache[string, *atomic.Int64] // how many EDUs may come before a server's are looked at
	due   chan string
}

func newBacklogs() backlogs {
	return backlogs{limit: maxUndelivered, left: cache.New[string, *atomic.Int64](maxBacklogs), due: make(chan string, maxDue)}
}

// grew notes that EDUs were written for a server.
func (b *backlogs) grew(server string, n int64) {
	left, known := b.left.Get(server)
	if !known {
		left = &atomic.Int64{}
		left.Store(weighAfter)
		left = b.left.GetOrPut(server, left, 1)
	}
	if left.Add(-n) > 0 {
		return
	}
	select {
	case b.due <- server:
		left.Store(weighAfter)
	default: // with the next EDU
	}
}

// boundBacklogs bounds what waits for other servers, until ctx ends.
func (a *API) boundBacklogs(ctx context.Context) {
	ticker := time.NewTicker(expireEvery)
	defer ticker.Stop()
	err := a.expireUndelivered(ctx)
	for {
		if err != nil && ctx.Err() == nil {
			a.log.WithError(err).Warn("what waits for other servers could not be bounded")
		}
		select {
		case <-ctx.Done():
			return
		case server := <-a.backlogs.due:
			err = a.boundBacklog(ctx, server)
		case <-ticker.C:
			err = a.expireUndelivered(ctx)
		}
	}
}

// boundBacklog bounds what waits for one server.
func (a *API) boundBacklog(ctx context.Context, server string) error {
	if err := a.collapseChanges(ctx, server); err != nil {
		return fmt.Errorf("changes of devices for %s: %w", server, err)
	}
	n, err := a.dropSurplus(ctx, server)
	if err != nil {
		return fmt.Errorf("messages to devices of %s: %w", server, err)
	}
	if n > 0 {
		a.log.WithFields(logrus.Fields{"server": server, "dropped": n}).
			Warn("a server takes no messages to its devices: the oldest of too many were deleted")
	}
	return nil
}

// collapseChanges leaves, of the changes of devices and cross-signing keys that a server was not told of, the last of each
// user, if they are many. It names a change before it of which the server does not know, so that the server asks for all
// devices of the user when it gets it.
//
// spec: server-server API v1.19 "Device Management", m.device_list_update, prev_id
func (a *API) collapseChanges(ctx context.Context, server string) error {
	changes, err := a.changesFor(ctx, server)
	if err != nil || len(changes) <= maxUntold {
		return err
	}
	type subject struct{ typ, user string }
	later := map[subject]bool{}
	var superseded []untold
	for _, c := range slices.Backward(changes) {
		if s := (subject{c.typ, c.user}); later[s] {
			superseded = append(superseded, c)
		} else {
			later[s] = true
		}
	}
	for part := range slices.Chunk(superseded, undeliveredPage) {
		err := a.db.Write(ctx, func(tx *storage.Tx) error {
			for _, c := range part {
				if _, err := tx.Exec(`DELETE FROM outgoing_edus WHERE destination = $1 AND pos = $2 AND n = $3`, server, c.pos, c.n); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// untold is an EDU about the devices or cross-signing keys of a user that waits for a server.
type untold struct {
	pos, n    int64
	typ, user string
}

// changesFor lists the changes that wait for a server, in order.
func (a *API) changesFor(ctx context.Context, server string) (list []untold, err error) {
	for more := true; more; {
		var last untold
		if len(list) > 0 {
			last = list[len(list)-1]
		}
		known := len(list)
		err := a.db.Read(ctx, func(tx *storage.Tx) error {
			list = list[:known]
			rows := tx.Query(`SELECT pos, n, type, content FROM outgoing_edus WHERE destination = $1 AND type <> $2 AND (pos, n) > ($3, $4)
				ORDER BY pos, n LIMIT $5`, server, messageEDU, last.pos, last.n, int64(undeliveredPage))
			for rows.Next() {
				var c untold
				var content []byte
				rows.Scan(&c.pos, &c.n, &c.typ, &content)
				c.user = gjson.GetBytes(content, "user_id").Str
				list = append(list, c)
			}
			return rows.Close()
		})
		if err != nil {
			return nil, err
		}
		more = len(list)-known == undeliveredPage
	}
	return list, nil
}

// dropSurplus deletes the oldest messages to devices of a server for which there are too many, until an eighth of the
// limit is free. It returns how many EDUs that were.
func (a *API) dropSurplus(ctx context.Context, server string) (n int, err error) {
	const newest = `SELECT pos FROM outgoing_edus WHERE destination = $1 AND type = $2 ORDER BY pos DESC, n DESC LIMIT 1 OFFSET $3`
	limit := a.backlogs.limit
	upTo := int64(0)
	err = a.db.Read(ctx, func(tx *storage.Tx) error {
		upTo = 0
		over, err := tx.Get(newest, []any{server, messageEDU, limit}, &upTo)
		if err == nil && over {
			_, err = tx.Get(newest, []any{server, messageEDU, limit - limit/8}, &upTo)
		}
		return err
	})
	if err != nil || upTo == 0 {
		return 0, err
	}
	servers, err := a.dropMessages(ctx, `destination = $3 AND pos <= $4`, server, upTo)
	return servers[server], err
}

// dropMessages deletes the messages to devices for which a condition with parameters from $3 on holds. It returns how many
// EDUs those were, by server.
func (a *API) dropMessages(ctx context.Context, condition string, args ...any) (map[string]int, error) {
	dropped := map[string]int{}
	args = append([]any{messageEDU, int64(undeliveredPage)}, args...)
	for {
		var servers []string
		err := a.db.Write(ctx, func(tx *storage.Tx) (err error) {
			servers, err = storage.List[string](tx, `DELETE FROM outgoing_edus WHERE (destination, pos, n) IN (
				SELECT destination, pos, n FROM outgoing_edus WHERE type = $1 AND `+condition+` ORDER BY pos LIMIT $2) RETURNING destination`, args...)
			return err
		})
		if err != nil {
			return dropped, err
		}
		for _, server := range servers {
			dropped[server]++
		}
		if len(servers) < undeliveredPage {
			return dropped, nil
		}
	}
}

// expireUndelivered deletes messages that have waited for too long for a server to take them. Changes of devices stay, as
// long as it takes: a server that missed them would encrypt for the wrong devices when it is back.
func (a *API) expireUndelivered(ctx context.Context) error {
	if a.undelivered <= 0 {
		return nil
	}
	upTo, err := a.noteDay(ctx)
	if err != nil || upTo == 0 {
		return err
	}
	dropped, err := a.dropMessages(ctx, `pos <= $3`, upTo)
	if err != nil {
		return fmt.Errorf("messages that have waited for too long: %w", err)
	}
	total := 0
	for _, n := range dropped {
		total += n
	}
	if total > 0 {
		a.log.WithFields(logrus.Fields{"servers": len(dropped), "dropped": total}).
			Warn("messages to devices were deleted whose servers have not taken them for longer than federation.undelivered_messages")
	}
	return nil
}

// noteDay writes down once a day where the log stands, and returns up to which position EDUs have waited for too long; 0
// if none have.
func (a *API) noteDay(ctx context.Context) (upTo int64, err error) {
	now, head := a.nowMS(), a.db.Head()
	err = a.db.Write(ctx, func(tx *storage.Tx) error {
		upTo = 0
		var last int64
		if _, err := tx.Get(`SELECT COALESCE(max(ts), 0) FROM outgoing_days`, nil, &last); err != nil {
			return err
		}
		if now-last >= (24 * time.Hour).Milliseconds() {
			if _, err := tx.Exec(`INSERT INTO outgoing_days (ts, pos) VALUES ($1, $2)`, now, head); err != nil {
				return err
			}
		}
		var since int64
		found, err := tx.Get(`SELECT ts, pos FROM outgoing_days WHERE ts <= $1 ORDER BY ts DESC LIMIT 1`, []any{now - a.undelivered.Milliseconds()}, &since, &upTo)
		if err != nil || !found {
			return err
		}
		_, err = tx.Exec(`DELETE FROM outgoing_days WHERE ts < $1`, since)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("note where the log stands: %w", err)
	}
	return upTo, nil
}
