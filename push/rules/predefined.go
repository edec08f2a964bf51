package rules

import (
	_ "embed"
	"encoding/json"
	"math/bits"
)

// predefinedJSON holds the definitions of the specification, in its order and its words, with its
// placeholder for the owner's user ID. The legacy rules that looked for mentions in the body are
// not among them: v1.17 removed them.
//
// spec: client-server-api v1.19 "Predefined Rules"
//
//go:embed predefined.json
var predefinedJSON []byte

// predefinedRule is a predefined rule, compiled once for all users.
type predefinedRule struct {
	kind    Kind
	rule    Rule        // with the placeholder for the user ID
	static  []condition // on the event alone: their outcome is part of Prepared
	dynamic []condition // on the room or the reader
	actions *Actions
}

// ruleSet is a set of predefined rules, a bit for each by its index.
type ruleSet uint32

var (
	predefined       = parsePredefined()
	predefinedByID   = make(map[string]int)
	enabledByDefault ruleSet
	// ofKind are the predefined rules of a kind, without the master rule.
	ofKind [kinds]ruleSet
	master ruleSet
)

func init() {
	for i, d := range predefined {
		predefinedByID[d.rule.ID] = i
		bit := ruleSet(1) << i
		if d.rule.Enabled {
			enabledByDefault |= bit
		}
		if d.rule.ID == ".m.rule.master" {
			master = bit
		} else {
			ofKind[d.kind] |= bit
		}
	}
}

// parsePredefined reads the embedded definitions. They are part of the program, so that a mistake
// in them is one of the build, which the tests see.
func parsePredefined() []predefinedRule {
	var in map[string][]Rule
	if err := json.Unmarshal(predefinedJSON, &in); err != nil {
		panic("predefined push rules: " + err.Error())
	}
	var out []predefinedRule
	for k := range Kind(kinds) {
		for _, r := range in[k.String()] {
			out = append(out, compilePredefined(k, r))
		}
	}
	return out
}

func compilePredefined(k Kind, r Rule) predefinedRule {
	for i := range r.Conditions {
		r.Conditions[i], _ = compact(r.Conditions[i])
	}
	for i := range r.Actions {
		r.Actions[i], _ = compact(r.Actions[i])
	}
	d := predefinedRule{kind: k, rule: r, actions: compileActions(r.Actions)}
	for _, raw := range r.Conditions {
		if c := compileCondition(raw).forReader(raw); c.op.static() {
			d.static = append(d.static, c)
		} else {
			d.dynamic = append(d.dynamic, c)
		}
	}
	return d
}

// first takes the first rule out of the set.
func (s *ruleSet) first() int {
	i := bits.TrailingZeros32(uint32(*s))
	*s &^= 1 << i
	return i
}
