package homeserver

import (
	"context"

	"github.com/myelin-im/myelin/e2ee"
	"github.com/myelin-im/myelin/federation/queue"
)

// owedEDUs is what package e2ee owes other servers, as the queue to them takes it.
type owedEDUs struct{ *e2ee.API }

// Pending implements queue.Source.
func (o owedEDUs) Pending(ctx context.Context, destination string, after, upTo int64, limit int) ([]queue.EDU, int64, error) {
	list, next, err := o.API.Pending(ctx, destination, after, upTo, limit)
	edus := make([]queue.EDU, len(list))
	for i, e := range list {
		edus[i] = queue.EDU(e)
	}
	return edus, next, err
}
