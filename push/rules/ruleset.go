package rules

import (
	"bytes"
	"encoding/json"
	"strings"
)

// Rule is a push rule as the API shows it.
//
// spec: client-server-api v1.19 "PushRule"
type Rule struct {
	ID      string `json:"rule_id"`
	Default bool   `json:"default"`
	Enabled bool   `json:"enabled"`
	// Pattern is the glob of a content rule, without meaning for other kinds.
	Pattern string `json:"pattern"`
	// Conditions are those of an override or underride rule, each a JSON object.
	Conditions []json.RawMessage `json:"conditions"`
	// Actions are JSON values as ParseActions gives them.
	Actions []json.RawMessage `json:"actions"`
}

// Ruleset is a user's rules of each kind, the most important first: the predefined ones among
// them, as the user set them.
type Ruleset [kinds][]Rule

// Ruleset is the whole of the user's rules. The master rule stands above the user's own, the other
// predefined rules below them.
//
// spec: client-server-api v1.19 "Predefined Rules"
func (o *Overlay) Ruleset(user string) *Ruleset {
	out := new(Ruleset)
	for k := range Kind(kinds) {
		if k == predefined[predefinedByID[masterID]].kind {
			out[k] = append(out[k], o.predefined(predefinedByID[masterID], user))
		}
		out[k] = append(out[k], o.own[k]...)
		if k == PostContent && o.threads == nil {
			continue
		}
		for s := ofKind[k]; s != 0; {
			out[k] = append(out[k], o.predefined(s.first(), user))
		}
	}
	return out
}

// predefined is a predefined rule as the user set it.
func (o *Overlay) predefined(i int, user string) Rule {
	r := predefined[i].rule
	if predefined[i].kind == PostContent && o.threads == nil {
		r.Enabled = false
	}
	if c, ok := o.changes[r.ID]; ok {
		if c.Enabled != nil {
			r.Enabled = *c.Enabled
		}
		if c.Actions != nil {
			r.Actions = *c.Actions
		}
	}
	for j, raw := range r.Conditions {
		if !bytes.Contains(raw, []byte(userPlaceholder)) {
			continue
		}
		conditions := append([]json.RawMessage(nil), r.Conditions...)
		conditions[j] = bytes.Replace(raw, []byte(`"`+userPlaceholder+`"`), appendString(nil, user), 1)
		r.Conditions = conditions
	}
	return r
}

// AppendJSON appends the ruleset as the API shows it.
func (r *Ruleset) AppendJSON(dst []byte) ([]byte, error) {
	dst = append(dst, '{')
	for k := range Kind(kinds) {
		if k == PostContent && len(r[k]) == 0 {
			continue
		}
		if k > 0 {
			dst = append(dst, ',')
		}
		dst = appendString(dst, k.String())
		dst = append(dst, ':', '[')
		for i := range r[k] {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = r[k][i].append(dst, k)
		}
		dst = append(dst, ']')
	}
	return append(dst, '}'), nil
}

// JSON is the rule as the API shows a rule of the given kind.
func (r *Rule) JSON(k Kind) json.RawMessage { return r.append(nil, k) }

func (r *Rule) append(dst []byte, k Kind) []byte {
	dst = append(dst, `{"rule_id":`...)
	dst = appendString(dst, r.ID)
	dst = append(dst, `,"default":`...)
	dst = appendBool(dst, r.Default)
	dst = append(dst, `,"enabled":`...)
	dst = appendBool(dst, r.Enabled)
	if k.hasConditions() {
		dst = append(dst, `,"conditions":`...)
		dst = appendList(dst, r.Conditions)
	}
	if k == Content {
		dst = append(dst, `,"pattern":`...)
		dst = appendString(dst, r.Pattern)
	}
	dst = append(dst, `,"actions":`...)
	dst = appendList(dst, r.Actions)
	return append(dst, '}')
}

func appendList(dst []byte, list []json.RawMessage) []byte {
	dst = append(dst, '[')
	for i, raw := range list {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(dst, raw...)
	}
	return append(dst, ']')
}

func appendBool(dst []byte, b bool) []byte {
	if b {
		return append(dst, "true"...)
	}
	return append(dst, "false"...)
}

// appendString appends s as a JSON string.
func appendString(dst []byte, s string) []byte {
	plain := !strings.ContainsFunc(s, func(c rune) bool { return c < ' ' || c > '~' || c == '"' || c == '\\' })
	if plain {
		dst = append(dst, '"')
		dst = append(dst, s...)
		return append(dst, '"')
	}
	quoted, _ := json.Marshal(s) // a string cannot fail
	return append(dst, quoted...)
}
