package filter

// MaxBytes is the size above which a filter is refused: 64 KiB.
const MaxBytes = 64 << 10

// Filter is what a client wants of /sync. The zero value lets everything through.
type Filter struct {
	// Fields are the event fields to include; nil means all.
	Fields *Fields
	// Federation asks for events in the format of the server-server API instead of the client format.
	Federation bool
	// Presence and AccountData apply to presence and to account data outside rooms.
	Presence, AccountData EventFilter
	// ProfileFields are the profile fields of which the client wants to hear (MSC4429); empty means none.
	ProfileFields []string
	// Room applies to everything in rooms.
	Room RoomFilter
}

// RoomFilter is the part of a Filter about rooms.
type RoomFilter struct {
	rooms, notRooms set
	// IncludeLeave asks for rooms that the user has left.
	IncludeLeave bool
	// The sections of a room.
	Ephemeral, State, Timeline, AccountData RoomEventFilter
}

// Allows tells whether a room may appear at all. It applies before the filters of the room's sections.
func (f *RoomFilter) Allows(roomID string) bool {
	return !f.notRooms.has(roomID) && (!f.rooms.given || f.rooms.has(roomID))
}

// EventFilter chooses events by type and sender. The zero value lets everything through.
type EventFilter struct {
	limit             int // where limited
	limited           bool
	types, notTypes   patterns
	senders, notSends set
}

// Limit is the number of events the client wants, or initial if it does not say, and never more than most.
// It may be 0.
func (f *EventFilter) Limit(initial, most int) int {
	if !f.limited {
		return min(initial, most)
	}
	return min(f.limit, most)
}

// Match tells whether an event of this type and sender passes.
func (f *EventFilter) Match(eventType, sender string) bool {
	return f.MatchType(eventType) && f.MatchSender(sender)
}

// MatchType tells whether events of this type can pass.
func (f *EventFilter) MatchType(eventType string) bool {
	return !f.notTypes.match(eventType) && (!f.types.given || f.types.match(eventType))
}

// MatchSender tells whether events of this sender can pass.
func (f *EventFilter) MatchSender(sender string) bool {
	return !f.notSends.has(sender) && (!f.senders.given || f.senders.has(sender))
}

// None tells that no event can pass, whatever it is, so that a reader need not look for any.
func (f *EventFilter) None() bool {
	return f.types.given && f.types.empty() || f.senders.given && len(f.senders.list) == 0 || f.notTypes.all
}

// RoomEventFilter chooses events of rooms. The zero value lets everything through.
type RoomEventFilter struct {
	EventFilter
	rooms, notRooms       set
	relTypes, notRelTypes set
	containsURL           *bool

	// LazyLoadMembers asks for the membership events of the senders in the answer only.
	LazyLoadMembers bool
	// IncludeRedundantMembers asks for them even if they were sent before. It has a meaning only with LazyLoadMembers.
	IncludeRedundantMembers bool
	// UnreadThreadNotifications asks /sync for notification counts of each thread.
	UnreadThreadNotifications bool
	// RelatedBySenders and RelatedByRelTypes, where not nil, pass only events to which an event of one of these
	// senders, or with one of these relation types, relates. Only a reader of relations can tell; Match does not.
	RelatedBySenders, RelatedByRelTypes []string
}

// Event is what a RoomEventFilter looks at.
type Event struct {
	Type, Sender, RoomID string
	// HasURL tells whether content has a member "url".
	HasURL bool
	// RelType is rel_type of content's m.relates_to; empty without a relation.
	RelType string
}

// Match tells whether an event passes, all but RelatedBySenders and RelatedByRelTypes considered.
func (f *RoomEventFilter) Match(e *Event) bool {
	return f.EventFilter.Match(e.Type, e.Sender) && f.Allows(e.RoomID) &&
		(f.containsURL == nil || *f.containsURL == e.HasURL) &&
		(!f.relTypes.given || f.relTypes.has(e.RelType)) &&
		(e.RelType == "" || !f.notRelTypes.has(e.RelType))
}

// Allows tells whether events of a room can pass.
func (f *RoomEventFilter) Allows(roomID string) bool {
	return !f.notRooms.has(roomID) && (!f.rooms.given || f.rooms.has(roomID))
}

// LooksAtContent tells whether Match needs HasURL or RelType, so that a reader which does not know them may skip
// working them out.
func (f *RoomEventFilter) LooksAtContent() bool {
	return f.containsURL != nil || f.relTypes.given || f.notRelTypes.given
}

// MatchesAll tells that every event passes, so that a reader need not ask.
func (f *RoomEventFilter) MatchesAll() bool {
	return !f.types.given && !f.notTypes.given && !f.senders.given && !f.notSends.given &&
		!f.rooms.given && !f.notRooms.given && !f.LooksAtContent() &&
		f.RelatedBySenders == nil && f.RelatedByRelTypes == nil
}
