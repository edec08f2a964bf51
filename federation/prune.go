package federation

import (
	"context"
	"time"

	"github.com/myelin-im/myelin/roomserver/pdu"
)

// pruneEvery is how often keys of servers are looked for that nobody needs any more.
const pruneEvery = 24 * time.Hour

// runPruning forgets keys of servers that nobody needs until ctx ends.
func (a *API) runPruning(ctx context.Context) {
	tick := time.NewTicker(pruneEvery)
	defer tick.Stop()
	for {
		switch n, err := a.keys.Prune(ctx, a.keepConcerned); {
		case err != nil && ctx.Err() == nil:
			a.log.WithError(err).Warn("keys of servers that nobody needs could not be deleted and will be later")
		case n > 0:
			a.log.WithField("servers", n).Info("deleted the keys of servers with which there has been nothing to do for long")
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// keepConcerned takes the servers of whose users there is a membership in a room here out of a set.
func (a *API) keepConcerned(ctx context.Context, servers map[string]struct{}) error {
	return a.rooms.EachRemoteUser(ctx, func(user string) bool {
		delete(servers, pdu.ServerOf(user))
		return len(servers) > 0
	})
}
