// Package pdu is the format of room events as servers exchange them: parsing,
// building, hashing, signing, redacting and rendering, for room versions 1 to
// 12 and the proposed ones that are in use. It is pure: no clock, network or database.
//
// An *Event is immutable and safe for concurrent use. Its strings and byte
// slices share the memory of its JSON: do not change the slices, and clone a
// string that is to outlive the event.
//
// spec: rooms/v1 to rooms/v12, server-server-api v1.19 "PDUs", "Signing Events"
package pdu

import (
	"slices"
	"strings"

	"github.com/myelin-im/myelin/internal/canonicaljson"
)

// Version is what differs between room versions. Values are compared by
// pointer; nobody changes one.
type Version struct {
	// ID is the version's identifier: "1" to "12", or that of a proposal.
	ID string
	// Rules is the number of the version whose authorisation rules these are, up
	// to what a proposal changes.
	Rules int

	// EventFormat is 1 where the sender chooses the event ID and references
	// carry hashes (versions 1 and 2), 2 where the ID is a hash (3 to 11), and 3
	// where the create event has no room_id either (12).
	EventFormat int
	// URLSafeIDs says that event IDs are written in the URL-safe alphabet (4 and
	// later). Meaningless in EventFormat 1.
	URLSafeIDs bool
	// StrictJSON demands canonical JSON: no fractions, exponents or integers
	// beyond ±(2^53-1) (6 and later).
	StrictJSON bool
	// StrictByteLimits says that fields longer than 255 bytes make an event
	// invalid. Before version 11 widespread servers counted code points, and
	// events of more bytes have to be kept, rejected: see Event.Oversized.
	StrictByteLimits bool
	// StateRes is the state resolution algorithm: 1, 2, or 3 for version 2.1.
	StateRes int
	// KeyValidityEnforced says that a signing key must have been valid at the
	// event's origin_server_ts (5 and later).
	KeyValidityEnforced bool

	// RedactionAuth says that the authorisation rules decide about redactions
	// (1 and 2); later they are accepted, and judged when they are applied.
	RedactionAuth bool
	// SpecialAliasAuth says that m.room.aliases has an authorisation rule and a
	// redaction rule of its own (1 to 5).
	SpecialAliasAuth bool
	// NotificationLevels says that the rules protect the power levels in
	// notifications (6 and later).
	NotificationLevels bool
	// KnockAllowed knows the membership and the join rule "knock" (7 and later).
	KnockAllowed bool
	// RestrictedJoins knows the join rule "restricted" and keeps the allow key
	// of join rules on redaction (8 and later).
	RestrictedJoins bool
	// RestrictedJoinsFix keeps join_authorised_via_users_server on redaction (9
	// and later).
	RestrictedJoinsFix bool
	// KnockRestricted knows the join rule "knock_restricted" (10 and later).
	KnockRestricted bool
	// IntegerPowerLevels refuses power levels that are not integers (10 and
	// later).
	IntegerPowerLevels bool
	// ImplicitCreator says that the creator is the sender of the create event
	// and not its content.creator (11 and later).
	ImplicitCreator bool
	// UpdatedRedaction is the redaction algorithm of versions 11 and later.
	UpdatedRedaction bool
	// RedactsInContent says that redacts is part of the content of a redaction
	// (11 and later) and not of the event.
	RedactsInContent bool
	// CreatorsPrivileged gives creators, including content.additional_creators,
	// infinite power (12).
	CreatorsPrivileged bool
	// RoomIDIsCreateHash says that the room ID is the create event's ID with
	// another sigil, and that no event cites the create event in auth_events
	// (12).
	RoomIDIsCreateHash bool
	// OwnedState makes state keys that begin with a user's ID theirs: they and
	// those with more power may set such state (MSC3757).
	OwnedState bool
}

// DefaultVersion is the version of new rooms.
//
// spec: rooms "the default room version is 12"
const DefaultVersion = "12"

// versions is in order, and versions[n-1].ID is n.
var versions = func() []*Version {
	list := make([]*Version, 12)
	for i, id := range [...]string{"1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12"} {
		n := i + 1
		v := &Version{
			ID:                  id,
			Rules:               n,
			EventFormat:         1,
			StateRes:            2,
			URLSafeIDs:          n >= 4,
			StrictJSON:          n >= 6,
			StrictByteLimits:    n >= 11,
			KeyValidityEnforced: n >= 5,
			RedactionAuth:       n <= 2,
			SpecialAliasAuth:    n <= 5,
			NotificationLevels:  n >= 6,
			KnockAllowed:        n >= 7,
			RestrictedJoins:     n >= 8,
			RestrictedJoinsFix:  n >= 9,
			KnockRestricted:     n >= 10,
			IntegerPowerLevels:  n >= 10,
			ImplicitCreator:     n >= 11,
			UpdatedRedaction:    n >= 11,
			RedactsInContent:    n >= 11,
			CreatorsPrivileged:  n >= 12,
			RoomIDIsCreateHash:  n >= 12,
		}
		if n >= 3 {
			v.EventFormat = 2
		}
		if n >= 12 {
			v.EventFormat, v.StateRes = 3, 3
		}
		if n == 1 {
			v.StateRes = 1
		}
		list[i] = v
	}
	return list
}()

// proposed are versions of proposals that other servers make rooms of.
var proposed = []*Version{owned(10), owned(11)}

var supported = slices.Concat(versions, proposed)

// owned is a numbered version with owned state (MSC3757).
func owned(n int) *Version {
	v := *versions[n-1]
	v.ID, v.OwnedState = "org.matrix.msc3757."+v.ID, true
	return &v
}

// Lookup finds a version by its identifier.
func Lookup(id string) (*Version, bool) {
	for _, v := range supported {
		if v.ID == id {
			return v, true
		}
	}
	return nil, false
}

// Versions lists the versions of the specification in order. The caller may keep
// and change the slice.
func Versions() []*Version { return slices.Clone(versions) }

// Supported is Versions followed by proposed versions.
func Supported() []*Version { return slices.Clone(supported) }

// Stable tells whether the version is one of the specification.
func (v *Version) Stable() bool { return slices.Contains(versions, v) }

// StateKeyOwner returns to whom a state key that begins with "@" belongs with
// OwnedState: the user whose ID it is, or begins with and goes on after "_". It
// is "" where that is no user's ID.
func StateKeyOwner(key string) string {
	if colon := strings.IndexByte(key, ':'); colon >= 0 {
		if end := strings.IndexByte(key[colon:], '_'); end >= 0 {
			key = key[:colon+end]
		}
	}
	if !ValidUserID(key) {
		return ""
	}
	return key
}

// jsonMode is how numbers are judged in events of this version.
func (v *Version) jsonMode() canonicaljson.Mode {
	if v.StrictJSON {
		return canonicaljson.Strict
	}
	return canonicaljson.Lax
}
