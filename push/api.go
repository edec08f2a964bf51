package push

import (
	"context"
	"embed"
	"encoding/json"

	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/ratelimit"
	"github.com/myelin-im/myelin/push/rules"
	"github.com/myelin-im/myelin/storage"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Schema is the part of the database that belongs to push.
var Schema = storage.Schema{Feature: "push", FS: migrations}

// API keeps users' push rules and answers the endpoints about them.
type API struct {
	db       *storage.DB
	versions *versionStore
}

// New makes the API. It subscribes to the log and must be called before the first write.
func New(db *storage.DB) *API {
	return &API{db: db, versions: newVersionStore(db)}
}

// Endpoints are the endpoints of this package.
func (a *API) Endpoints() []httpapi.Endpoint {
	const base = "/_matrix/client/v3/pushrules/"
	const rule = base + "global/{kind}/{ruleId}"
	return []httpapi.Endpoint{
		httpapi.New("GET", base, httpapi.User, ratelimit.Read, a.getAll),
		httpapi.New("GET", base+"global/", httpapi.User, ratelimit.Read, a.getGlobal),
		httpapi.New("GET", rule, httpapi.User, ratelimit.Read, a.getRule),
		httpapi.New("PUT", rule, httpapi.User, ratelimit.Account, a.putRule),
		httpapi.New("DELETE", rule, httpapi.User, ratelimit.Account, a.deleteRule),
		httpapi.New("GET", rule+"/enabled", httpapi.User, ratelimit.Read, a.getEnabled),
		httpapi.New("PUT", rule+"/enabled", httpapi.User, ratelimit.Account, a.putEnabled),
		httpapi.New("GET", rule+"/actions", httpapi.User, ratelimit.Read, a.getActions),
		httpapi.New("PUT", rule+"/actions", httpapi.User, ratelimit.Account, a.putActions),
	}
}

// RulesSpan returns the user's rules by which an event at a position is judged, and, for readers that judge one event after
// the other, up to which position they are known to stay the same. It is cheap enough to be asked for each event, and opens
// a snapshot of the database if it must.
func (a *API) RulesSpan(ctx context.Context, user string, pos int64) (compiled *rules.Compiled, until int64, err error) {
	if h, upTo, ok := a.versions.cached(user, pos); ok && h.at(pos) == h.last() {
		return h.latest.compiled, upTo, nil
	}
	err = a.db.Read(ctx, func(tx *storage.Tx) error {
		v, err := a.versions.at(tx, user, pos)
		if err != nil {
			return err
		}
		h, err := a.versions.history(tx, user, pos)
		if err != nil {
			return err
		}
		compiled, until = v.compiled, h.until(pos, max(pos, h.upTo))
		return nil
	})
	return compiled, until, err
}

// RulesChangedBetween tells whether the user changed rules after position since, up to and
// including position until: whether a sync between the two shows m.push_rules.
func (a *API) RulesChangedBetween(tx *storage.Tx, user string, since, until int64) (bool, error) {
	h, err := a.versions.history(tx, user, until)
	if err != nil {
		return false, err
	}
	return h.at(until) > since, nil
}

// AccountData returns the content of the user's m.push_rules account data as it is now.
func (a *API) AccountData(tx *storage.Tx, user string) (json.RawMessage, error) {
	return a.AppendAccountData(tx, user, now, nil)
}

// AppendAccountData appends the content of the user's m.push_rules account data at a position.
//
// spec: client-server-api v1.19 "Push Rules: Events"
func (a *API) AppendAccountData(tx *storage.Tx, user string, pos int64, dst []byte) ([]byte, error) {
	v, err := a.versions.at(tx, user, pos)
	if err != nil {
		return nil, err
	}
	return allRules{v.overlay.Ruleset(user)}.AppendJSON(dst)
}
