package syncapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/myelin-im/myelin/ephemeral"
	"github.com/myelin-im/myelin/internal/mxerr"
)

// slidingDialect is one of the two ways in which sliding sync is spoken.
type slidingDialect int

const (
	// slidingV4 is MSC4186 as it was accepted.
	slidingV4 slidingDialect = iota
	// slidingDraft is what clients used before, org.matrix.simplified_msc3575.
	slidingDraft
)

// The bounds of a request.
const (
	maxSlidingLists         = 100
	maxSlidingSubscriptions = 100
	// maxDraftSubscriptions is larger, since the drafts set no bound and clients subscribe to all that they show.
	maxDraftSubscriptions = 1000
	maxSlidingTimeline    = 100
	maxStateElements      = 200
	maxConnectionName     = 255
	maxListName           = 255
)

// slidingRequest is a request of either dialect.
type slidingRequest struct {
	dialect       slidingDialect
	name          string
	pos           string
	timeout       int64
	presence      string
	lists         []slidingList // by name
	subscriptions map[string]*roomConfig
	extensions    slidingExtensions
}

// slidingList is one list of a request.
type slidingList struct {
	name   string
	config *roomConfig
	// ranges are the windows, both ends included; nil means all rooms.
	ranges  []pair[int]
	filters *slidingFilters
}

// slidingFilters say which rooms a list holds; nil is no restriction.
type slidingFilters struct {
	IsDM         *bool     `json:"is_dm"`
	Spaces       []string  `json:"spaces"`
	IsEncrypted  *bool     `json:"is_encrypted"`
	IsInvited    *bool     `json:"is_invited"`
	IsInvite     *bool     `json:"is_invite"` // the drafts' name
	RoomTypes    []*string `json:"room_types"`
	NotRoomTypes []*string `json:"not_room_types"`
	Tags         []string  `json:"tags"`
	NotTags      []string  `json:"not_tags"`
}

// slidingExtensions are the extensions of a request (MSC3885, MSC3884, MSC3959, MSC3960, MSC3961).
type slidingExtensions struct {
	ToDevice    toDeviceExtension `json:"to_device"`
	E2EE        enabledExtension  `json:"e2ee"`
	AccountData roomExtension     `json:"account_data"`
	Receipts    roomExtension     `json:"receipts"`
	Typing      roomExtension     `json:"typing"`
	Threads     threadsExtension  `json:"io.element.msc4308.thread_subscriptions"`
	Profiles    profilesExtension `json:"org.matrix.msc4262.profiles"`
	Sticky      stickyExtension   `json:"org.matrix.msc4354.sticky_events"`
}

type enabledExtension struct {
	Enabled bool `json:"enabled"`
}

type toDeviceExtension struct {
	Enabled bool   `json:"enabled"`
	Limit   *int   `json:"limit"`
	Since   string `json:"since"`
}

// roomExtension is an extension about rooms: those of the lists and subscriptions named, of all without names.
type roomExtension struct {
	Enabled bool      `json:"enabled"`
	Lists   *[]string `json:"lists"`
	Rooms   *[]string `json:"rooms"`
}

type slidingBody struct {
	Name          string                     `json:"conn_id"`
	Pos           string                     `json:"pos"`
	Timeout       int64                      `json:"timeout"`
	SetPresence   *string                    `json:"set_presence"`
	Lists         map[string]json.RawMessage `json:"lists"`
	Subscriptions map[string]json.RawMessage `json:"room_subscriptions"`
	Extensions    slidingExtensions          `json:"extensions"`
}

type slidingConfigBody struct {
	TimelineLimit *int            `json:"timeline_limit"`
	RequiredState json.RawMessage `json:"required_state"`
	Range         *pair[int]      `json:"range"`
	Ranges        []pair[int]     `json:"ranges"`
	Filters       *slidingFilters `json:"filters"`
}

// parseSliding reads the body of a request. With the drafts' dialect, pos and timeout are in the query.
func parseSliding(d slidingDialect, user string, body []byte) (*slidingRequest, error) {
	var in slidingBody
	if err := decodeSliding(body, &in); err != nil {
		return nil, err
	}
	out := &slidingRequest{dialect: d, presence: "online", name: in.Name, pos: in.Pos, timeout: in.Timeout, extensions: in.Extensions}
	if len(in.Name) > maxConnectionName {
		return nil, mxerr.InvalidParam("conn_id is too long")
	}
	if in.Timeout < 0 {
		return nil, mxerr.InvalidParam("timeout is negative")
	}
	if p := in.SetPresence; p != nil {
		if _, ok := ephemeral.ParseState(*p); !ok {
			return nil, mxerr.InvalidParam("set_presence is not a presence")
		}
		out.presence = *p
	}
	most := maxSlidingSubscriptions
	if d == slidingDraft {
		most = maxDraftSubscriptions
	}
	if len(in.Lists) > maxSlidingLists || len(in.Subscriptions) > most {
		return nil, mxerr.InvalidParam("There are too many lists or subscriptions")
	}
	for name, raw := range in.Lists {
		if len(name) == 0 || len(name) > maxListName || d == slidingV4 && !isOpaque(name) {
			return nil, mxerr.InvalidParam("The name of a list is empty, too long, or has other characters than letters, digits and -._~")
		}
		l, err := parseSlidingList(d, user, raw)
		if err != nil {
			return nil, err
		}
		l.name = name
		out.lists = append(out.lists, *l)
	}
	slices.SortFunc(out.lists, func(a, b slidingList) int { return strings.Compare(a.name, b.name) })
	out.subscriptions = make(map[string]*roomConfig, len(in.Subscriptions))
	for id, raw := range in.Subscriptions {
		l, err := parseSlidingList(d, user, raw)
		if err != nil {
			return nil, err
		}
		out.subscriptions[id] = l.config
	}
	return out, nil
}

// isOpaque tells whether a name has only the characters of opaque identifiers.
//
// Spec: appendices v1.19, "Opaque Identifiers".
func isOpaque(name string) bool {
	return !strings.ContainsFunc(name, func(r rune) bool {
		return (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z') && !strings.ContainsRune("-._~", r)
	})
}

// pair is a JSON array of exactly two. As a plain [2]T, shorter ones would be filled up and longer ones cut.
type pair[T any] [2]T

// UnmarshalJSON implements json.Unmarshaler.
func (p *pair[T]) UnmarshalJSON(raw []byte) error {
	var elements []T
	if err := json.Unmarshal(raw, &elements); err != nil {
		return err
	}
	if len(elements) != len(p) {
		return fmt.Errorf("%d elements instead of a pair", len(elements))
	}
	copy(p[:], elements)
	return nil
}

// decodeSliding decodes JSON that is known to be well-formed.
func decodeSliding(raw []byte, into any) error {
	err := json.Unmarshal(raw, into)
	if err == nil {
		return nil
	}
	what := "A member of the request"
	if wrong, ok := errors.AsType[*json.UnmarshalTypeError](err); ok && wrong.Field != "" {
		what = wrong.Field
	}
	return mxerr.BadJSON(what + " is not of the right type").With(err)
}

// parseSlidingList reads a list or, without window and filters, a subscription.
func parseSlidingList(d slidingDialect, user string, raw json.RawMessage) (*slidingList, error) {
	var in slidingConfigBody
	if err := decodeSliding(raw, &in); err != nil {
		return nil, err
	}
	if d == slidingV4 && (in.TimelineLimit == nil || in.RequiredState == nil) {
		return nil, mxerr.MissingParam("timeline_limit and required_state are required")
	}
	l := &slidingList{config: &roomConfig{}, filters: in.Filters}
	if in.TimelineLimit != nil {
		if *in.TimelineLimit < 0 {
			return nil, mxerr.InvalidParam("timeline_limit is negative")
		}
		l.config.limit = min(*in.TimelineLimit, maxSlidingTimeline)
	}
	rule, err := parseRequiredState(d, user, in.RequiredState)
	if err != nil {
		return nil, err
	}
	if rule != nil {
		l.config.state = stateConfig{*rule}
	}
	if d == slidingV4 && in.Range != nil {
		in.Ranges = []pair[int]{*in.Range}
	} else if d == slidingV4 {
		in.Ranges = nil
	}
	for _, r := range in.Ranges {
		if r[0] < 0 || r[1] < r[0] {
			return nil, mxerr.InvalidParam("A range is not one")
		}
	}
	l.ranges = in.Ranges
	if f := l.filters; f != nil && d == slidingDraft {
		f.IsInvited = f.IsInvite
	}
	return l, nil
}

// parseRequiredState reads required_state; nil is none.
func parseRequiredState(d slidingDialect, user string, raw json.RawMessage) (*stateRule, error) {
	if len(raw) == 0 || bytes.Equal(raw, []byte("null")) {
		return nil, nil
	}
	rule := &stateRule{}
	if d == slidingV4 {
		if err := decodeSliding(raw, rule); err != nil {
			return nil, err
		}
	} else if err := rule.parseDraft(user, raw); err != nil {
		return nil, err
	}
	if len(rule.Include)+len(rule.Exclude) > maxStateElements {
		return nil, mxerr.InvalidParam("required_state is too long")
	}
	if len(rule.Include) == 0 && !rule.Lazy {
		return nil, nil
	}
	rule.text = rule.key()
	return rule, nil
}

// parseDraft reads the drafts' form: pairs of type and state key, where "*" stands for any, $ME for the user and
// $LAZY for the members that the timeline needs.
func (r *stateRule) parseDraft(user string, raw json.RawMessage) error {
	var pairs []pair[string]
	if err := decodeSliding(raw, &pairs); err != nil {
		return err
	}
	for _, p := range pairs {
		typ, key := p[0], p[1]
		if typ == "m.room.member" && key == "$LAZY" {
			r.Lazy = true
			continue
		}
		if key == "$ME" {
			key = user
		}
		var e stateElement
		if typ != "*" {
			e.Type = &typ
		}
		if key != "*" {
			e.Key = &key
		}
		r.Include = append(r.Include, e)
	}
	return nil
}

// slidingToken is what a pos says: which answer of which connection the client has processed, and how far it knows
// what is not remembered per room.
type slidingToken struct {
	generation int64
	conn       int64
	// seq is the last answer that changed what the client knows of rooms.
	seq int64
	// pos is the log position of the answer.
	pos      int64
	volatile Volatile
	// fields stands for the profile fields that the client wants (profilesExtension.mark).
	fields int64
}

const slidingTokenPrefix = "q1_"

// String is the token's wire form.
func (t slidingToken) String() string {
	s := fmt.Sprintf(slidingTokenPrefix+"%s_%s_%d_%d_%s_%d", strconv.FormatInt(t.generation, 36), strconv.FormatInt(t.conn, 36),
		t.seq, t.pos, strconv.FormatInt(t.volatile.Boot, 36), t.volatile.Typing)
	if t.fields != 0 {
		s += "_" + strconv.FormatInt(t.fields, 10)
	}
	return s
}

// parseSlidingToken reads a token; ok is false for anything else.
func parseSlidingToken(s string) (t slidingToken, ok bool) {
	rest, found := strings.CutPrefix(s, slidingTokenPrefix)
	parts := strings.Split(rest, "_")
	if !found || len(parts) != 6 && len(parts) != 7 {
		return t, false
	}
	for i, to := range []*int64{&t.generation, &t.conn, &t.seq, &t.pos, &t.volatile.Boot, &t.volatile.Typing, &t.fields}[:len(parts)] {
		base := 10
		if i < 2 || i == 4 {
			base = 36
		}
		v, err := strconv.ParseInt(parts[i], base, 64)
		if err != nil || v < 0 {
			return t, false
		}
		*to = v
	}
	return t, true
}

// roomConfig is what a rule wants of the rooms that it matches.
type roomConfig struct {
	limit int
	state stateConfig
}

// with is the superset of both.
func (c *roomConfig) with(o *roomConfig) *roomConfig {
	if c == nil || c == o {
		return o
	}
	state := c.state
	for _, r := range o.state {
		if !slices.ContainsFunc(state, func(s stateRule) bool { return s.key() == r.key() }) {
			state = append(slices.Clip(state), r)
		}
	}
	return &roomConfig{limit: max(c.limit, o.limit), state: state}
}

// stateConfig is the state that rules want: what any of them does.
type stateConfig []stateRule

// stateRule is a RequiredStateRequest of MSC4186.
type stateRule struct {
	Include []stateElement `json:"include,omitempty"`
	Exclude []stateElement `json:"exclude,omitempty"`
	Lazy    bool           `json:"lazy_members,omitempty"`

	text string
}

// stateElement matches places in the state; nil stands for any.
type stateElement struct {
	Type *string `json:"type,omitempty"`
	Key  *string `json:"state_key,omitempty"`
}

func (e *stateElement) matches(typ, key string) bool {
	return (e.Type == nil || *e.Type == typ) && (e.Key == nil || *e.Key == key)
}

// key is the rule as text, the same for the same rule.
func (r *stateRule) key() string {
	if r.text != "" {
		return r.text
	}
	raw, err := json.Marshal(r)
	if err != nil {
		return "" // strings can be encoded
	}
	return string(raw)
}

// matches tells whether the rule wants a place in the state, apart from what lazy loading adds.
func (r *stateRule) matches(typ, key string) bool {
	wanted := false
	for i := range r.Include {
		e := &r.Include[i]
		// Lazily loaded members are in the state only where their user is named.
		if e.matches(typ, key) && (!r.Lazy || typ != memberType || e.Key != nil) {
			wanted = true
			break
		}
	}
	if !wanted {
		return false
	}
	for i := range r.Exclude {
		if r.Exclude[i].matches(typ, key) {
			return false
		}
	}
	return true
}

const memberType = "m.room.member"

func (c stateConfig) matches(typ, key string) bool {
	for i := range c {
		if c[i].matches(typ, key) {
			return true
		}
	}
	return false
}

// lazy tells whether members are loaded lazily.
func (c stateConfig) lazy() bool {
	return slices.ContainsFunc(c, func(r stateRule) bool { return r.Lazy })
}

// key is the config as text, the same for the same rules in any order.
func (c stateConfig) key() string {
	if len(c) == 1 {
		return "[" + c[0].key() + "]"
	}
	keys := make([]string, len(c))
	for i := range c {
		keys[i] = c[i].key()
	}
	slices.Sort(keys)
	return "[" + strings.Join(keys, ",") + "]"
}

// parseStateConfig reads what key made.
func parseStateConfig(text string) (c stateConfig, err error) {
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		return nil, fmt.Errorf("read required state: %w", err)
	}
	return c, nil
}
