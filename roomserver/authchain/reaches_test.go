package authchain

import "context"

// restsOn is reaches for the numbers of events.
func (x *Index) restsOn(ctx context.Context, a, b int64) (bool, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	nodes, err := x.nodes(ctx, []int64{a, b})
	if err != nil {
		return false, err
	}
	return x.reaches(ctx, nodes[0], nodes[1])
}
