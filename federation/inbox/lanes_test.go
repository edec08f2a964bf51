package inbox

import (
	"context"
	"testing"
)

// What runs ahead does not wait for the lanes, is bounded, and is waited for at the end.
func TestAhead(t *testing.T) {
	lanes := NewLanes(1)
	block := make(chan struct{})
	lanes.Add(context.Background(), "lane", func(context.Context) { <-block })
	begun, ended := make(chan struct{}, maxAhead+1), make(chan struct{}, maxAhead+1)
	for range maxAhead + 1 {
		lanes.Ahead(func() {
			begun <- struct{}{}
			<-block
			ended <- struct{}{}
		})
	}
	for range maxAhead {
		<-begun // although the only lane is blocked
	}
	close(block)
	lanes.Wait()
	if len(begun) != 0 || len(ended) != maxAhead {
		t.Errorf("%d more began and %d ended, want 0 and %d", len(begun), len(ended), maxAhead)
	}
	ran := false
	lanes.Ahead(func() { ran = true })
	if lanes.Wait(); !ran {
		t.Error("nothing runs ahead any more")
	}
}
