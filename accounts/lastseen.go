package accounts

import (
	"context"
	"sync"
	"time"

	"github.com/myelin-im/myelin/storage"
)

const (
	// seenEvery is how old the noted time of a device may get before it is noted anew.
	seenEvery = int64(time.Minute / time.Millisecond)
	// seenFlush is how often what was noted is written.
	seenFlush = 30 * time.Second
	// maxSeen bounds the devices noted between two writes; further ones are noted a little later.
	maxSeen = 64 << 10
	// seenPerWrite bounds the rows of one write, so that it does not hold up others.
	seenPerWrite = 100
)

// lastSeen collects when and from where devices were seen, so that no request writes it.
type lastSeen struct {
	mu    sync.Mutex
	noted map[deviceKey]sighting // guarded by mu
}

type deviceKey struct{ userID, deviceID string }

type sighting struct {
	ts   int64
	addr string
}

func newLastSeen() *lastSeen { return &lastSeen{noted: map[deviceKey]sighting{}} }

// note notes a request of a session, at most once a minute.
func (l *lastSeen) note(s *session, now int64, addr string) {
	last := s.seen.Load()
	if now-last < seenEvery || addr == "" || !s.seen.CompareAndSwap(last, now) {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.noted) < maxSeen {
		l.noted[deviceKey{s.caller.UserID, s.caller.DeviceID}] = sighting{now, addr}
	}
}

// take returns what was noted since the last time.
func (l *lastSeen) take() map[deviceKey]sighting {
	l.mu.Lock()
	defer l.mu.Unlock()
	noted := l.noted
	l.noted = map[deviceKey]sighting{}
	return noted
}

// writeLastSeen writes what was noted, now and then and when ctx ends.
func (a *API) writeLastSeen(ctx context.Context) {
	tick := time.NewTicker(seenFlush)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			a.flushLastSeen(ctx)
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
			a.flushLastSeen(last)
			cancel()
			return
		}
	}
}

func (a *API) flushLastSeen(ctx context.Context) {
	noted := a.seen.take()
	keys := make([]deviceKey, 0, len(noted))
	for k := range noted {
		keys = append(keys, k)
	}
	for len(keys) > 0 {
		n := min(len(keys), seenPerWrite)
		part := keys[:n]
		keys = keys[n:]
		err := a.db.Write(ctx, func(tx *storage.Tx) error {
			for _, k := range part {
				// A login may have written a later time meanwhile.
				_, err := tx.Exec(`UPDATE devices SET last_seen_ts = $3, last_seen_ip = $4
					WHERE user_id = $1 AND device_id = $2 AND (last_seen_ts IS NULL OR last_seen_ts < $3)`,
					k.userID, k.deviceID, noted[k].ts, noted[k].addr)
				if err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			a.log.WithError(err).Warn("cannot write when devices were last seen")
			return
		}
	}
}
