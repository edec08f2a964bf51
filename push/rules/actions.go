package rules

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/tidwall/gjson"
)

// Actions is what a matching rule does.
//
// spec: client-server-api v1.19 "Actions"
type Actions struct {
	// Notify is whether the event notifies the user at all. Without it the tweaks mean nothing.
	Notify bool
	// Highlight is the value of the highlight tweak.
	Highlight bool
	// Sound is the value of the sound tweak, empty for silence.
	Sound string
	// Raw are the actions as the user or the specification wrote them, each a valid JSON value,
	// with all tweaks, for push gateways and /notifications. Not to be changed.
	Raw []json.RawMessage
}

// none is the outcome of an event that no rule matches. Shared, as every outcome is.
var none = &Actions{Raw: []json.RawMessage{}}

// ErrAction is in the chain of the error for an actions list that the specification does not know.
var ErrAction = errors.New("invalid push rule action")

// ParseActions checks and compacts the "actions" of a request. The historical actions
// dont_notify and coalesce are kept for the clients that still read them, and have no effect. The error is
// safe to show and has [ErrAction] in its chain.
func ParseActions(list []json.RawMessage) ([]json.RawMessage, error) {
	out := make([]json.RawMessage, 0, len(list))
	for _, raw := range list {
		in := gjson.ParseBytes(raw)
		if in.Type == gjson.String {
			switch in.Str {
			case "notify", "dont_notify", "coalesce":
				out = append(out, json.RawMessage(`"`+in.Str+`"`))
			default:
				return nil, fmt.Errorf("%w: unknown action %q", ErrAction, in.Str)
			}
			continue
		}
		if _, ok := stringMember(in, "set_tweak"); !ok {
			return nil, fmt.Errorf("%w: an action is \"notify\" or an object with set_tweak", ErrAction)
		}
		c, err := compact(raw)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	return out, nil
}

// compileActions reads the tweaks that the server itself understands. What it cannot read has no effect.
func compileActions(list []json.RawMessage) *Actions {
	a := &Actions{Raw: list}
	for _, raw := range list {
		if string(raw) == `"notify"` {
			a.Notify = true
			continue
		}
		tweak := gjson.ParseBytes(raw)
		name, _ := stringMember(tweak, "set_tweak")
		switch name {
		case "highlight":
			// "If a highlight tweak is given with no value, its value is defined to be true."
			v := member(tweak, "value")
			a.Highlight = !v.Exists() || v.Type == gjson.True
		case "sound":
			a.Sound, _ = stringMember(tweak, "value") // anything but a string is no sound
		}
	}
	return a
}

// compact returns raw without insignificant space, in memory of its own.
func compact(raw json.RawMessage) (json.RawMessage, error) {
	var b bytes.Buffer
	if err := json.Compact(&b, raw); err != nil {
		return nil, fmt.Errorf("compact push rule: %w", err)
	}
	return b.Bytes(), nil
}
