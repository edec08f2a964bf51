package counts

import (
	"context"
	"fmt"

	"github.com/myelin-im/myelin/push/rules"
)

// silent are the actions of an event that does not concern the user.
var silent = &rules.Actions{}

// Judge returns what the user's push rules say of events of a room, as counting judges them: nothing for the user's own,
// for redacted ones and for messages of users who are ignored. The answers are in the order of the events, and not to be
// changed.
func (c *Counter) Judge(ctx context.Context, room int64, user string, events []*Event) ([]*rules.Actions, error) {
	r := reader{Log: c.log, place: place{room, user}}
	var err error
	if r.ignored, r.ignoredVersion, err = c.log.Ignored(ctx, user); err != nil {
		return nil, fmt.Errorf("judge events for %s: %w", user, err)
	}
	out := make([]*rules.Actions, len(events))
	for i, e := range events {
		out[i] = silent
		if e.Sender == user || e.Redacted || r.ignored[e.Sender] && !e.State {
			continue
		}
		if out[i], err = r.evaluate(ctx, e); err != nil {
			return nil, fmt.Errorf("judge events for %s: %w", user, err)
		}
	}
	return out, nil
}
