package relations_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/relations"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/roomserver/pdu"
)

// endless is a tree in which wide events relate to each, of names events in all: so many ways lead back to each.
type endless struct{ wide, names, found int }

func (e *endless) Find(_ context.Context, id string, _ *roomserver.Event) (*roomserver.Event, error) {
	e.found++
	return &roomserver.Event{Event: &pdu.Event{ID: id}}, nil
}

func (e *endless) Replies(_ context.Context, to *roomserver.Event) ([]relations.Reply, error) {
	var n int
	if _, err := fmt.Sscanf(to.ID, "$%d", &n); err != nil {
		return nil, err
	}
	var out []relations.Reply
	for i := range e.wide {
		out = append(out, relations.Reply{ID: fmt.Sprintf("$%d", (n*e.wide+i+1)%e.names), RelType: "m.reference", OriginServerTS: int64(i)})
	}
	return out, nil
}

// A walk ends, whatever relates to what, and its pages have every event once.
func TestWalkEnds(t *testing.T) {
	unbounded := -1
	for _, test := range []struct {
		name        string
		wide, names int
		want        int  // events of all pages, if
		whole       bool // they can all be had
	}{
		{"an event that relates to itself", 1, 1, 1, true},
		{"a loop of two", 1, 2, 2, true},
		{"a loop of many", 3, 700, 700, true},
		{"more than anybody reads", 1000, 1 << 40, 0, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, deep := range []bool{false, true} {
				most := 500
				w, err := (&relations.Request{EventID: "$0", MaxDepth: &unbounded, MaxBreadth: &unbounded, Limit: &most, DepthFirst: deep}).Walk()
				if err != nil {
					t.Fatal(err)
				}
				w.UpTo = 1
				var got []string
				for {
					tree := &endless{wide: test.wide, names: test.names}
					page, err := w.From(t.Context(), tree, &roomserver.Event{Event: &pdu.Event{ID: "$0"}})
					if err != nil {
						t.Fatal(err)
					}
					if tree.found > 10_000 || len(page.Events) > most {
						t.Fatalf("%d events were looked at for %d", tree.found, len(page.Events))
					}
					for _, e := range page.Events {
						got = append(got, e.ID)
					}
					if page.NextBatch == "" {
						if page.Limited == test.whole {
							t.Errorf("depth first %t: limited is %t at the end", deep, page.Limited)
						}
						break
					}
					if w, err = (&relations.Request{Batch: page.NextBatch}).Walk(); err != nil {
						t.Fatal(err)
					}
				}
				slices.Sort(got)
				if n := len(slices.Compact(slices.Clone(got))); n != len(got) || test.whole && n != test.want {
					t.Errorf("depth first %t: %d events, %d different, want %d", deep, len(got), n, test.want)
				}
			}
		})
	}
}

func TestBatchTokensAreChecked(t *testing.T) {
	for _, token := range []string{"", "x", "bnVsbA", "W10"} {
		_, err := (&relations.Request{Batch: token}).Walk()
		var refused *mxerr.Error
		if !errors.As(err, &refused) || refused.Status != 400 {
			t.Errorf("batch %q: %v", token, err)
		}
	}
}
