package retention

import (
	"context"

	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/ratelimit"
)

// Endpoints lists the endpoints of this package.
func (c *Cleaner) Endpoints() []httpapi.Endpoint {
	return []httpapi.Endpoint{
		httpapi.New("GET", "/_matrix/client/unstable/org.matrix.msc1763/retention/configuration", httpapi.User, ratelimit.Read, c.configuration),
	}
}

// configuration is the server's policy as MSC1763 tells it to clients.
type configuration struct {
	// Policies are by room id; "*" is for rooms that say nothing of it.
	Policies map[string]lifetime `json:"policies"`
	// Limits bound what rooms set.
	Limits limits `json:"limits"`
}

type lifetime struct {
	Max int64 `json:"max_lifetime"` // ms
}

type limits struct {
	MaxLifetime *bounds `json:"max_lifetime,omitempty"`
}

type bounds struct {
	Min int64 `json:"min,omitempty"` // ms
	Max int64 `json:"max,omitempty"` // ms
}

// configuration: MSC1763, GET /retention/configuration.
func (c *Cleaner) configuration(context.Context, *httpapi.Caller, *httpapi.Empty) (*configuration, error) {
	out := &configuration{Policies: map[string]lifetime{}}
	p := c.cfg.Policy
	if life := p.Otherwise(); life > 0 {
		out.Policies["*"] = lifetime{life.Milliseconds()}
	}
	if p.Enabled && p.AtLeast+p.AtMost > 0 {
		out.Limits.MaxLifetime = &bounds{p.AtLeast.Milliseconds(), p.AtMost.Milliseconds()}
	}
	return out, nil
}
