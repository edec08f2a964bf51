package rules

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// masterID is the predefined rule that stands above all others.
const masterID = ".m.rule.master"

// MaxOverlay is the greatest size of what a user may store, in bytes of [Overlay.Encode]: more
// than a thousand rules. Each change stores the overlay anew and each event may ask every rule.
const MaxOverlay = 128 << 10

// Errors of changes to an Overlay.
var (
	// ErrNotFound is for a rule that does not exist.
	ErrNotFound = errors.New("the push rule was not found")
	// ErrPredefined is for an attempt to make or delete a predefined rule.
	ErrPredefined = errors.New("rule IDs that start with a dot are reserved for predefined rules")
	// ErrNeighbour is for a rule to stand before or after that is no rule of the user.
	ErrNeighbour = errors.New("before/after rule not found")
	// ErrOverlayTooLarge is for a change after which the overlay would be larger than [MaxOverlay].
	ErrOverlayTooLarge = errors.New("too many push rules")
)

// Overlay is what a user changed of the predefined rules and added to them. The zero value changes
// nothing. Predefined rules that the specification adds later are there for everyone at once.
type Overlay struct {
	own     [kinds][]Rule // the most important first
	changes map[string]change
	// threads are those that the user has subscribed to, the latest last; nil for one who never did.
	threads *[]string
}

// change is what a user set of a predefined rule; nil means as predefined.
type change struct {
	Enabled *bool              `json:"enabled,omitempty"`
	Actions *[]json.RawMessage `json:"actions,omitempty"`
}

// storedRule is a user's rule in an encoded overlay.
type storedRule struct {
	ID         string            `json:"id"`
	Disabled   bool              `json:"off,omitempty"`
	Pattern    string            `json:"pattern,omitempty"`
	Conditions []json.RawMessage `json:"conditions,omitempty"`
	Actions    []json.RawMessage `json:"actions,omitempty"`
}

type storedOverlay struct {
	Own        map[string][]storedRule `json:"own,omitempty"`
	Predefined map[string]change       `json:"predefined,omitempty"`
	Threads    *[]string               `json:"threads,omitempty"`
}

// Encode gives the overlay for storing.
func (o *Overlay) Encode() ([]byte, error) {
	s := storedOverlay{Own: make(map[string][]storedRule), Predefined: o.changes, Threads: o.threads}
	for k, list := range o.own {
		stored := make([]storedRule, len(list))
		for i, r := range list {
			stored[i] = storedRule{ID: r.ID, Disabled: !r.Enabled, Pattern: r.Pattern, Conditions: r.Conditions, Actions: r.Actions}
		}
		if len(stored) > 0 {
			s.Own[Kind(k).String()] = stored
		}
	}
	out, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("encode push rules: %w", err)
	}
	if len(out) > MaxOverlay {
		return nil, ErrOverlayTooLarge
	}
	return out, nil
}

// DecodeOverlay reads what Encode gave.
func DecodeOverlay(stored []byte) (*Overlay, error) {
	var s storedOverlay
	if err := json.Unmarshal(stored, &s); err != nil {
		return nil, fmt.Errorf("decode push rules: %w", err)
	}
	o := &Overlay{changes: s.Predefined, threads: s.Threads}
	for name, list := range s.Own {
		k, ok := ParseKind(name)
		if !ok {
			return nil, fmt.Errorf("decode push rules: unknown kind %q", name)
		}
		for _, r := range list {
			o.own[k] = append(o.own[k], Rule{ID: r.ID, Enabled: !r.Disabled, Pattern: r.Pattern, Conditions: r.Conditions, Actions: r.Actions})
		}
	}
	return o, nil
}

// Rule returns one of the user's rules, predefined ones among them, or [ErrNotFound].
func (o *Overlay) Rule(user string, k Kind, id string) (Rule, error) {
	if i, ok := predefinedByID[id]; ok && predefined[i].kind == k {
		return o.predefined(i, user), nil
	}
	if i := o.index(k, id); i >= 0 {
		return o.own[k][i], nil
	}
	return Rule{}, ErrNotFound
}

func (o *Overlay) index(k Kind, id string) int {
	return slices.IndexFunc(o.own[k], func(r Rule) bool { return r.ID == id })
}

// Put adds or replaces one of the user's own rules. A new rule is enabled, a replaced one stays as
// it was. With before it becomes the next more important than that rule, else with after the next
// less important; with neither a new rule becomes the most important one of its kind and a
// replaced one keeps its place. Errors: [ErrPredefined], [ErrNeighbour].
//
// spec: client-server-api v1.19 "PUT /pushrules/global/{kind}/{ruleId}"
func (o *Overlay) Put(k Kind, r Rule, before, after string) error {
	if strings.HasPrefix(r.ID, ".") {
		return ErrPredefined
	}
	r.Default, r.Enabled = false, true
	rest, place := o.own[k], 0
	if i := o.index(k, r.ID); i >= 0 {
		r.Enabled = rest[i].Enabled
		rest, place = slices.Delete(slices.Clone(rest), i, i+1), i
	}
	byID := func(id string) int { return slices.IndexFunc(rest, func(r Rule) bool { return r.ID == id }) }
	switch {
	case before != "":
		if place = byID(before); place < 0 {
			return fmt.Errorf("%w: %s", ErrNeighbour, before)
		}
	case after != "":
		if place = byID(after) + 1; place == 0 {
			return fmt.Errorf("%w: %s", ErrNeighbour, after)
		}
	}
	o.own[k] = slices.Insert(slices.Clone(rest), place, r)
	return nil
}

// Delete removes one of the user's own rules. Errors: [ErrPredefined], [ErrNotFound].
func (o *Overlay) Delete(k Kind, id string) error {
	if i, ok := predefinedByID[id]; ok && predefined[i].kind == k {
		return ErrPredefined
	}
	i := o.index(k, id)
	if i < 0 {
		return ErrNotFound
	}
	o.own[k] = slices.Delete(slices.Clone(o.own[k]), i, i+1)
	return nil
}

// SetEnabled switches a rule on or off, a predefined one too. Error: [ErrNotFound].
func (o *Overlay) SetEnabled(k Kind, id string, enabled bool) error {
	return o.set(k, id, func(c *change) { c.Enabled = &enabled }, func(r *Rule) { r.Enabled = enabled })
}

// SetActions sets what a rule does, also a predefined one; actions are as ParseActions gave them. Error: [ErrNotFound].
func (o *Overlay) SetActions(k Kind, id string, actions []json.RawMessage) error {
	return o.set(k, id, func(c *change) { c.Actions = &actions }, func(r *Rule) { r.Actions = actions })
}

// maxThreads bounds the threads of which rules know that the user has subscribed to them: the latest.
const maxThreads = 1000

// SetSubscribed notes that the user has subscribed to a thread, by the event ID of its root, or unsubscribed. With the
// first subscription the rules about threads come into force: who never subscribed is notified as if there were none.
//
// spec: MSC4306
func (o *Overlay) SetSubscribed(root string, subscribed bool) {
	threads := []string{}
	if o.threads != nil {
		threads = slices.DeleteFunc(slices.Clone(*o.threads), func(r string) bool { return r == root })
	}
	if subscribed {
		threads = append(threads, root)
	}
	if len(threads) > maxThreads {
		threads = threads[len(threads)-maxThreads:]
	}
	o.threads = &threads
}

// set changes a predefined rule with one function or the user's own with the other.
func (o *Overlay) set(k Kind, id string, ofPredefined func(*change), ofOwn func(*Rule)) error {
	if i, ok := predefinedByID[id]; ok && predefined[i].kind == k {
		c := o.changes[id]
		ofPredefined(&c)
		if o.changes == nil {
			o.changes = make(map[string]change)
		}
		o.changes[id] = c
		return nil
	}
	i := o.index(k, id)
	if i < 0 {
		return ErrNotFound
	}
	o.own[k] = slices.Clone(o.own[k])
	ofOwn(&o.own[k][i])
	return nil
}
