package search

import (
	"encoding/base64"
	"encoding/json"
	"math"

	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/syncapi/filter"
)

type searchRequest struct {
	NextBatch  string `query:"next_batch"`
	Categories *struct {
		RoomEvents *criteria `json:"room_events"`
	} `json:"search_categories"`
}

// criteria is the request for the category room_events.
type criteria struct {
	Term    *string         `json:"search_term"`
	Keys    []string        `json:"keys"`
	Filter  json.RawMessage `json:"filter"`
	OrderBy string          `json:"order_by"`
	Context *struct {
		Before  *int `json:"before_limit"`
		After   *int `json:"after_limit"`
		Profile bool `json:"include_profile"`
	} `json:"event_context"`
	State     bool `json:"include_state"`
	Groupings struct {
		GroupBy []struct {
			Key string `json:"key"`
		} `json:"group_by"`
	} `json:"groupings"`
}

// The ways to group results.
const (
	byRoom   = "room_id"
	bySender = "sender"
)

const (
	// defaultResults and mostResults are how many results one answer has.
	defaultResults, mostResults = 10, 100
	// defaultContext and mostContext are how many events before, and after, come with each.
	defaultContext, mostContext = 5, 50
)

// query is a checked request.
type query struct {
	term          string
	parts         []part // what is searched; nil means everything
	filter        *filter.RoomEventFilter
	recent        bool
	limit         int
	context       bool
	before, after int
	profile       bool
	state         bool
	groups        []string
	from          place
}

// place is where a page of results begins. Ranks are only comparable among the same matches, so the pages of a ranked
// answer all have the same bound, and later ones skip what was shown.
type place struct {
	// Below bounds the ids of entries.
	Below int64 `json:"b"`
	// Skip is how many results come before.
	Skip int `json:"s,omitempty"`
	// Seen is how many results were on earlier pages of an answer by time, for the number of all.
	Seen int `json:"n,omitempty"`
	// Group and In confine the page to a group: the way of grouping and the group's value.
	Group string `json:"g,omitempty"`
	In    string `json:"i,omitempty"`
}

var errToken = mxerr.InvalidParam("next_batch is not a token of this endpoint")

func parsePlace(token string) (p place, err error) {
	if token == "" {
		return place{Below: math.MaxInt64}, nil
	}
	raw, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil || len(raw) > 1024 {
		return p, errToken
	}
	if err := json.Unmarshal(raw, &p); err != nil || p.Below <= 0 || p.Skip < 0 || p.Skip > maxMatches || p.Seen < 0 || p.Seen > math.MaxInt32 ||
		p.Group != "" && p.Group != byRoom && p.Group != bySender {
		return p, errToken
	}
	return p, nil
}

func (p place) String() string {
	raw, err := json.Marshal(p)
	if err != nil {
		return ""
	}
	return base64.RawURLEncoding.EncodeToString(raw)
}

// check makes a query of the criteria.
func (c *criteria) check(token string) (*query, error) {
	if c.Term == nil {
		return nil, mxerr.MissingParam("Missing parameter search_term")
	}
	q := &query{term: *c.Term, state: c.State, filter: new(filter.RoomEventFilter)}
	for _, key := range c.Keys {
		p, ok := parts[key]
		if !ok {
			return nil, mxerr.InvalidParam("Unknown key: " + key)
		}
		q.parts = append(q.parts, p)
	}
	switch c.OrderBy {
	case "", "rank":
	case "recent":
		q.recent = true
	default:
		return nil, mxerr.InvalidParam("Unknown order_by: " + c.OrderBy)
	}
	for _, g := range c.Groupings.GroupBy {
		if g.Key != byRoom && g.Key != bySender {
			return nil, mxerr.InvalidParam("Unknown key of a grouping: " + g.Key)
		}
		q.groups = append(q.groups, g.Key)
	}
	var err error
	if len(c.Filter) > 0 && string(c.Filter) != "null" {
		if q.filter, err = filter.ParseRoomEvents(c.Filter); err != nil {
			return nil, err
		}
	}
	q.limit = max(1, q.filter.Limit(defaultResults, mostResults))
	if err := c.checkContext(q); err != nil {
		return nil, err
	}
	q.from, err = parsePlace(token)
	return q, err
}

func (c *criteria) checkContext(q *query) error {
	if c.Context == nil {
		return nil
	}
	q.context, q.profile, q.before, q.after = true, c.Context.Profile, defaultContext, defaultContext
	for _, bound := range []struct {
		asked *int
		to    *int
	}{{c.Context.Before, &q.before}, {c.Context.After, &q.after}} {
		if bound.asked == nil {
			continue
		}
		if *bound.asked < 0 {
			return mxerr.InvalidParam("before_limit and after_limit must not be negative")
		}
		*bound.to = min(*bound.asked, mostContext)
	}
	return nil
}
