package rules

// Kind is the kind of a push rule; the values stand in the order in which kinds are checked.
//
// spec: client-server-api v1.19 "Push Rules"; MSC4306 adds postcontent, of which there are predefined rules only
type Kind uint8

// The kinds of push rules.
const (
	Override Kind = iota
	Content
	PostContent
	RoomSpecific
	SenderSpecific
	Underride

	kinds = 6
)

var kindNames = [kinds]string{"override", "content", "postcontent", "room", "sender", "underride"}

// ParseKind returns the kind of the given name, as it stands in paths and in rulesets.
func ParseKind(name string) (Kind, bool) {
	for k, n := range kindNames {
		if n == name {
			return Kind(k), true
		}
	}
	return 0, false
}

// String is the kind's name in paths and rulesets.
func (k Kind) String() string { return kindNames[k] }

// hasConditions tells whether rules of this kind carry a list of conditions.
func (k Kind) hasConditions() bool { return k == Override || k == PostContent || k == Underride }
