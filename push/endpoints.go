package push

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"unicode/utf8"

	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/push/rules"
	"github.com/myelin-im/myelin/storage"
)

// allRules is the answer of GET /pushrules/ and the content of m.push_rules.
type allRules struct{ global *rules.Ruleset }

// AppendJSON appends the rulesets by scope, of which there is one.
func (r allRules) AppendJSON(dst []byte) ([]byte, error) {
	dst, err := r.global.AppendJSON(append(dst, `{"global":`...))
	return append(dst, '}'), err
}

// written is JSON that is already written.
type written json.RawMessage

// AppendJSON appends it.
func (w written) AppendJSON(dst []byte) ([]byte, error) { return append(dst, w...), nil }

// rulePath names a rule in a path.
type rulePath struct {
	Kind   string `path:"kind"`
	RuleID string `path:"ruleId"`
}

func (p *rulePath) kind() (rules.Kind, error) {
	k, ok := rules.ParseKind(p.Kind)
	if !ok {
		return 0, mxerr.InvalidParam("Unknown kind of push rule")
	}
	return k, nil
}

type getRuleRequest struct {
	rulePath
}

type putRuleRequest struct {
	rulePath
	Before     string            `query:"before"`
	After      string            `query:"after"`
	Actions    []json.RawMessage `json:"actions" required:"true"`
	Conditions []json.RawMessage `json:"conditions"`
	Pattern    *string           `json:"pattern"`
}

type enabled struct {
	Enabled bool `json:"enabled"`
}

type putEnabledRequest struct {
	rulePath
	Enabled bool `json:"enabled" required:"true"`
}

type actions struct {
	Actions []json.RawMessage `json:"actions"`
}

type putActionsRequest struct {
	rulePath
	Actions []json.RawMessage `json:"actions" required:"true"`
}

// current reads the caller's rules as they are now.
func (a *API) current(ctx context.Context, user string) (overlay *rules.Overlay, err error) {
	err = a.db.Read(ctx, func(tx *storage.Tx) error {
		v, err := a.versions.at(tx, user, now)
		if err == nil {
			overlay = v.overlay
		}
		return err
	})
	return overlay, err
}

// spec: client-server-api v1.19 "GET /pushrules/"
func (a *API) getAll(ctx context.Context, by *httpapi.Caller, _ *httpapi.Empty) (*allRules, error) {
	overlay, err := a.current(ctx, by.UserID)
	if err != nil {
		return nil, err
	}
	return &allRules{overlay.Ruleset(by.UserID)}, nil
}

// spec: client-server-api v1.19 "GET /pushrules/global/"
func (a *API) getGlobal(ctx context.Context, by *httpapi.Caller, _ *httpapi.Empty) (*rules.Ruleset, error) {
	overlay, err := a.current(ctx, by.UserID)
	if err != nil {
		return nil, err
	}
	return overlay.Ruleset(by.UserID), nil
}

// rule reads the rule that a path names.
func (a *API) rule(ctx context.Context, by *httpapi.Caller, p *rulePath) (k rules.Kind, r rules.Rule, err error) {
	if k, err = p.kind(); err != nil {
		// A client that asks whether the server has a newer kind of rule learns that it has not.
		return k, r, mxerr.NotFound("There is no such push rule").With(err)
	}
	overlay, err := a.current(ctx, by.UserID)
	if err != nil {
		return k, r, err
	}
	r, err = overlay.Rule(by.UserID, k, p.RuleID)
	return k, r, asClientError(err)
}

// spec: client-server-api v1.19 "GET /pushrules/global/{kind}/{ruleId}"
func (a *API) getRule(ctx context.Context, by *httpapi.Caller, in *getRuleRequest) (*written, error) {
	k, r, err := a.rule(ctx, by, &in.rulePath)
	if err != nil {
		return nil, err
	}
	out := written(r.JSON(k))
	return &out, nil
}

// spec: client-server-api v1.19 "GET /pushrules/global/{kind}/{ruleId}/enabled"
func (a *API) getEnabled(ctx context.Context, by *httpapi.Caller, in *getRuleRequest) (*enabled, error) {
	_, r, err := a.rule(ctx, by, &in.rulePath)
	if err != nil {
		return nil, err
	}
	return &enabled{r.Enabled}, nil
}

// spec: client-server-api v1.19 "GET /pushrules/global/{kind}/{ruleId}/actions"
func (a *API) getActions(ctx context.Context, by *httpapi.Caller, in *getRuleRequest) (*actions, error) {
	_, r, err := a.rule(ctx, by, &in.rulePath)
	if err != nil {
		return nil, err
	}
	return &actions{append([]json.RawMessage{}, r.Actions...)}, nil
}

// spec: client-server-api v1.19 "PUT /pushrules/global/{kind}/{ruleId}"
func (a *API) putRule(ctx context.Context, by *httpapi.Caller, in *putRuleRequest) (*httpapi.Empty, error) {
	k, err := in.kind()
	if err != nil {
		return nil, err
	}
	if k == rules.PostContent {
		return nil, mxerr.InvalidParam("There are only predefined rules of this kind")
	}
	r, err := in.rule(k)
	if err != nil {
		return nil, err
	}
	return a.change(ctx, by, func(o *rules.Overlay) error { return o.Put(k, r, in.Before, in.After) })
}

// rule checks the request and gives the rule it describes.
func (in *putRuleRequest) rule(k rules.Kind) (rules.Rule, error) {
	r := rules.Rule{ID: in.RuleID}
	if strings.ContainsAny(r.ID, `/\`) || !utf8.ValidString(r.ID) {
		return r, mxerr.InvalidParam("A rule ID may contain neither slashes nor backslashes")
	}
	var err error
	if r.Actions, err = rules.ParseActions(in.Actions); err != nil {
		return r, asClientError(err)
	}
	switch k {
	case rules.Override, rules.Underride:
		if r.Conditions, err = rules.ParseConditions(in.Conditions); err != nil {
			return r, asClientError(err)
		}
	case rules.Content:
		if in.Pattern == nil {
			return r, mxerr.MissingParam("A content rule needs a pattern")
		}
		r.Pattern = *in.Pattern
	}
	return r, nil
}

// spec: client-server-api v1.19 "DELETE /pushrules/global/{kind}/{ruleId}"
func (a *API) deleteRule(ctx context.Context, by *httpapi.Caller, in *getRuleRequest) (*httpapi.Empty, error) {
	k, err := in.kind()
	if err != nil {
		return nil, err
	}
	return a.change(ctx, by, func(o *rules.Overlay) error { return o.Delete(k, in.RuleID) })
}

// spec: client-server-api v1.19 "PUT /pushrules/global/{kind}/{ruleId}/enabled"
func (a *API) putEnabled(ctx context.Context, by *httpapi.Caller, in *putEnabledRequest) (*httpapi.Empty, error) {
	k, err := in.kind()
	if err != nil {
		return nil, err
	}
	return a.change(ctx, by, func(o *rules.Overlay) error { return o.SetEnabled(k, in.RuleID, in.Enabled) })
}

// spec: client-server-api v1.19 "PUT /pushrules/global/{kind}/{ruleId}/actions"
func (a *API) putActions(ctx context.Context, by *httpapi.Caller, in *putActionsRequest) (*httpapi.Empty, error) {
	k, err := in.kind()
	if err != nil {
		return nil, err
	}
	list, err := rules.ParseActions(in.Actions)
	if err != nil {
		return nil, asClientError(err)
	}
	return a.change(ctx, by, func(o *rules.Overlay) error { return o.SetActions(k, in.RuleID, list) })
}

// change writes a change of the caller's rules.
func (a *API) change(ctx context.Context, by *httpapi.Caller, fn func(*rules.Overlay) error) (*httpapi.Empty, error) {
	var refused error
	err := a.db.Write(ctx, func(tx *storage.Tx) (err error) {
		refused, err = change(tx, by.UserID, fn)
		return err
	})
	if err == nil {
		err = asClientError(refused)
	}
	if err != nil {
		return nil, err
	}
	return &httpapi.Empty{}, nil
}

// asClientError turns the errors of package rules into answers.
func asClientError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, rules.ErrNotFound):
		return mxerr.NotFound("The push rule was not found")
	case errors.Is(err, rules.ErrNeighbour):
		return mxerr.New(http.StatusBadRequest, "M_UNKNOWN", err.Error())
	case errors.Is(err, rules.ErrPredefined), errors.Is(err, rules.ErrAction), errors.Is(err, rules.ErrCondition):
		return mxerr.InvalidParam(err.Error())
	case errors.Is(err, rules.ErrOverlayTooLarge):
		return mxerr.TooLarge("There are too many push rules, or they are too large")
	}
	return err
}
