package authrules

// rule names one rule of the specification's lists. The lists of different room versions number
// the same rule differently, so code and tests use names, and numberings gives the numbers.
type rule uint8

const (
	noRule rule = iota

	createPrevEvents
	createRoomID
	createRoomVersion
	createCreator
	createAdditionalCreators
	createAllow

	roomIDNotCreate

	authEventsDuplicate
	authEventsUnexpected
	authEventsRejected
	authEventsNoCreate
	authEventsRoomID

	federateFalse

	aliasesNoStateKey
	aliasesDomain
	aliasesAllow

	memberMalformed
	memberAuthoriserSignature
	joinFirst
	joinOther
	joinBanned
	joinInvited
	joinRestrictedMember
	joinRestrictedAuthoriser
	joinRestrictedAllow
	joinPublic
	joinOtherwise
	thirdPartyBanned
	thirdPartySigned
	thirdPartyFields
	thirdPartyMXID
	thirdPartyNoEvent
	thirdPartySender
	thirdPartySignature
	thirdPartyOtherwise
	inviteSender
	inviteTarget
	inviteLevel
	inviteOtherwise
	leaveSelf
	leaveSender
	leaveUnban
	leaveKick
	leaveOtherwise
	banSender
	banLevel
	banOtherwise
	knockJoinRule
	knockOther
	knockAllow
	knockOtherwise
	memberUnknown

	senderNotJoined
	thirdPartyInviteLevel
	requiredLevel
	stateKeyOfOther

	powerInteger
	powerMaps
	powerUsers
	powerCreators
	powerFirst
	powerOldLevel
	powerNewLevel
	powerOldEntry
	powerNewEntry
	powerOldUser
	powerNewUser
	powerAllow

	redactionLevel
	redactionDomain
	redactionOtherwise

	otherwiseAllow

	rules // number of rules
)

// outcome tells which way a rule may decide.
type outcome uint8

const (
	rejects outcome = 1 << iota
	allows
)

// numbering is how the rule is called from a room version on; an empty number means that the rule
// is gone.
type numbering struct {
	since  int
	number string
}

// ruleTable describes every rule: its name, which way it decides, and its number in the lists of
// room versions 1 to 12 as the specification shows them.
//
// spec: rooms/v1 to rooms/v12 "Authorisation rules"
var ruleTable = [rules]struct {
	name     string
	outcomes outcome
	numbers  []numbering
}{
	createPrevEvents:         {"create.prev_events", rejects, []numbering{{1, "1.1"}}},
	createRoomID:             {"create.room_id", rejects, []numbering{{1, "1.2"}}},
	createRoomVersion:        {"create.room_version", rejects, []numbering{{1, "1.3"}}},
	createCreator:            {"create.creator", rejects, []numbering{{1, "1.4"}, {11, ""}}},
	createAdditionalCreators: {"create.additional_creators", rejects, []numbering{{12, "1.4"}}},
	createAllow:              {"create.allow", allows, []numbering{{1, "1.5"}, {11, "1.4"}, {12, "1.5"}}},

	roomIDNotCreate: {"room_id", rejects, []numbering{{12, "2"}}},

	authEventsDuplicate:  {"auth_events.duplicate", rejects, []numbering{{1, "2.1"}, {12, "3.1"}}},
	authEventsUnexpected: {"auth_events.unexpected", rejects, []numbering{{1, "2.2"}, {12, "3.2"}}},
	authEventsRejected:   {"auth_events.rejected", rejects, []numbering{{1, "2.3"}, {12, "3.3"}}},
	authEventsNoCreate:   {"auth_events.no_create", rejects, []numbering{{1, "2.4"}, {12, ""}}},
	authEventsRoomID:     {"auth_events.room_id", rejects, []numbering{{1, "2.5"}, {12, "3.4"}}},

	federateFalse: {"federate", rejects, []numbering{{1, "3"}, {12, "4"}}},

	aliasesNoStateKey: {"aliases.state_key", rejects, []numbering{{1, "4.1"}, {6, ""}}},
	aliasesDomain:     {"aliases.domain", rejects, []numbering{{1, "4.2"}, {6, ""}}},
	aliasesAllow:      {"aliases.allow", allows, []numbering{{1, "4.3"}, {6, ""}}},

	memberMalformed:           {"member.malformed", rejects, []numbering{{1, "5.1"}, {6, "4.1"}, {12, "5.1"}}},
	memberAuthoriserSignature: {"member.authoriser", rejects, []numbering{{8, "4.2.1"}, {12, "5.2.1"}}},

	joinFirst:                {"join.first", allows, []numbering{{1, "5.2.1"}, {6, "4.2.1"}, {8, "4.3.1"}, {12, "5.3.1"}}},
	joinOther:                {"join.other", rejects, []numbering{{1, "5.2.2"}, {6, "4.2.2"}, {8, "4.3.2"}, {12, "5.3.2"}}},
	joinBanned:               {"join.banned", rejects, []numbering{{1, "5.2.3"}, {6, "4.2.3"}, {8, "4.3.3"}, {12, "5.3.3"}}},
	joinInvited:              {"join.invited", allows, []numbering{{1, "5.2.4"}, {6, "4.2.4"}, {8, "4.3.4"}, {12, "5.3.4"}}},
	joinRestrictedMember:     {"join.restricted.member", allows, []numbering{{8, "4.3.5.1"}, {12, "5.3.5.1"}}},
	joinRestrictedAuthoriser: {"join.restricted.authoriser", rejects, []numbering{{8, "4.3.5.2"}, {12, "5.3.5.2"}}},
	joinRestrictedAllow:      {"join.restricted.allow", allows, []numbering{{8, "4.3.5.3"}, {12, "5.3.5.3"}}},
	joinPublic:               {"join.public", allows, []numbering{{1, "5.2.5"}, {6, "4.2.5"}, {8, "4.3.6"}, {12, "5.3.6"}}},
	joinOtherwise:            {"join.otherwise", rejects, []numbering{{1, "5.2.6"}, {6, "4.2.6"}, {8, "4.3.7"}, {12, "5.3.7"}}},

	thirdPartyBanned:    {"invite.third_party.banned", rejects, []numbering{{1, "5.3.1.1"}, {6, "4.3.1.1"}, {8, "4.4.1.1"}, {12, "5.4.1.1"}}},
	thirdPartySigned:    {"invite.third_party.signed", rejects, []numbering{{1, "5.3.1.2"}, {6, "4.3.1.2"}, {8, "4.4.1.2"}, {12, "5.4.1.2"}}},
	thirdPartyFields:    {"invite.third_party.fields", rejects, []numbering{{1, "5.3.1.3"}, {6, "4.3.1.3"}, {8, "4.4.1.3"}, {12, "5.4.1.3"}}},
	thirdPartyMXID:      {"invite.third_party.mxid", rejects, []numbering{{1, "5.3.1.4"}, {6, "4.3.1.4"}, {8, "4.4.1.4"}, {12, "5.4.1.4"}}},
	thirdPartyNoEvent:   {"invite.third_party.event", rejects, []numbering{{1, "5.3.1.5"}, {6, "4.3.1.5"}, {8, "4.4.1.5"}, {12, "5.4.1.5"}}},
	thirdPartySender:    {"invite.third_party.sender", rejects, []numbering{{1, "5.3.1.6"}, {6, "4.3.1.6"}, {8, "4.4.1.6"}, {12, "5.4.1.6"}}},
	thirdPartySignature: {"invite.third_party.signature", allows, []numbering{{1, "5.3.1.7"}, {6, "4.3.1.7"}, {8, "4.4.1.7"}, {12, "5.4.1.7"}}},
	thirdPartyOtherwise: {"invite.third_party.otherwise", rejects, []numbering{{1, "5.3.1.8"}, {6, "4.3.1.8"}, {8, "4.4.1.8"}, {12, "5.4.1.8"}}},
	inviteSender:        {"invite.sender", rejects, []numbering{{1, "5.3.2"}, {6, "4.3.2"}, {8, "4.4.2"}, {12, "5.4.2"}}},
	inviteTarget:        {"invite.target", rejects, []numbering{{1, "5.3.3"}, {6, "4.3.3"}, {8, "4.4.3"}, {12, "5.4.3"}}},
	inviteLevel:         {"invite.level", allows, []numbering{{1, "5.3.4"}, {6, "4.3.4"}, {8, "4.4.4"}, {12, "5.4.4"}}},
	inviteOtherwise:     {"invite.otherwise", rejects, []numbering{{1, "5.3.5"}, {6, "4.3.5"}, {8, "4.4.5"}, {12, "5.4.5"}}},

	leaveSelf:      {"leave.self", rejects | allows, []numbering{{1, "5.4.1"}, {6, "4.4.1"}, {8, "4.5.1"}, {12, "5.5.1"}}},
	leaveSender:    {"leave.sender", rejects, []numbering{{1, "5.4.2"}, {6, "4.4.2"}, {8, "4.5.2"}, {12, "5.5.2"}}},
	leaveUnban:     {"leave.unban", rejects, []numbering{{1, "5.4.3"}, {6, "4.4.3"}, {8, "4.5.3"}, {12, "5.5.3"}}},
	leaveKick:      {"leave.kick", allows, []numbering{{1, "5.4.4"}, {6, "4.4.4"}, {8, "4.5.4"}, {12, "5.5.4"}}},
	leaveOtherwise: {"leave.otherwise", rejects, []numbering{{1, "5.4.5"}, {6, "4.4.5"}, {8, "4.5.5"}, {12, "5.5.5"}}},

	banSender:    {"ban.sender", rejects, []numbering{{1, "5.5.1"}, {6, "4.5.1"}, {8, "4.6.1"}, {12, "5.6.1"}}},
	banLevel:     {"ban.level", allows, []numbering{{1, "5.5.2"}, {6, "4.5.2"}, {8, "4.6.2"}, {12, "5.6.2"}}},
	banOtherwise: {"ban.otherwise", rejects, []numbering{{1, "5.5.3"}, {6, "4.5.3"}, {8, "4.6.3"}, {12, "5.6.3"}}},

	knockJoinRule:  {"knock.join_rule", rejects, []numbering{{7, "4.6.1"}, {8, "4.7.1"}, {12, "5.7.1"}}},
	knockOther:     {"knock.other", rejects, []numbering{{7, "4.6.2"}, {8, "4.7.2"}, {12, "5.7.2"}}},
	knockAllow:     {"knock.allow", allows, []numbering{{7, "4.6.3"}, {8, "4.7.3"}, {12, "5.7.3"}}},
	knockOtherwise: {"knock.otherwise", rejects, []numbering{{7, "4.6.4"}, {8, "4.7.4"}, {12, "5.7.4"}}},

	memberUnknown: {"member.unknown", rejects, []numbering{{1, "5.6"}, {6, "4.6"}, {7, "4.7"}, {8, "4.8"}, {12, "5.8"}}},

	senderNotJoined:       {"sender", rejects, []numbering{{1, "6"}, {6, "5"}, {12, "6"}}},
	thirdPartyInviteLevel: {"third_party_invite", rejects | allows, []numbering{{1, "7.1"}, {6, "6.1"}, {12, "7.1"}}},
	requiredLevel:         {"level", rejects, []numbering{{1, "8"}, {6, "7"}, {12, "8"}}},
	stateKeyOfOther:       {"state_key", rejects, []numbering{{1, "9"}, {6, "8"}, {12, "9"}}},

	powerInteger:  {"power.integer", rejects, []numbering{{10, "9.1"}, {12, "10.1"}}},
	powerMaps:     {"power.maps", rejects, []numbering{{10, "9.2"}, {12, "10.2"}}},
	powerUsers:    {"power.users", rejects, []numbering{{1, "10.1"}, {6, "9.1"}, {10, "9.3"}, {12, "10.3"}}},
	powerCreators: {"power.creators", rejects, []numbering{{12, "10.4"}}},
	powerFirst:    {"power.first", allows, []numbering{{1, "10.2"}, {6, "9.2"}, {10, "9.4"}, {12, "10.5"}}},
	powerOldLevel: {"power.level.old", rejects, []numbering{{1, "10.3.1"}, {6, "9.3.1"}, {10, "9.5.1"}, {12, "10.6.1"}}},
	powerNewLevel: {"power.level.new", rejects, []numbering{{1, "10.3.2"}, {6, "9.3.2"}, {10, "9.5.2"}, {12, "10.6.2"}}},
	powerOldEntry: {"power.entry.old", rejects, []numbering{{1, "10.4.1"}, {6, "9.4.1"}, {10, "9.6.1"}, {12, "10.7.1"}}},
	powerNewEntry: {"power.entry.new", rejects, []numbering{{1, "10.5.1"}, {6, "9.5.1"}, {10, "9.7.1"}, {12, "10.8.1"}}},
	powerOldUser:  {"power.user.old", rejects, []numbering{{1, "10.6.1"}, {6, "9.6.1"}, {10, "9.8.1"}, {12, "10.9.1"}}},
	powerNewUser:  {"power.user.new", rejects, []numbering{{1, "10.7.1"}, {6, "9.7.1"}, {10, "9.9.1"}, {12, "10.10.1"}}},
	powerAllow:    {"power.allow", allows, []numbering{{1, "10.8"}, {6, "9.8"}, {10, "9.10"}, {12, "10.11"}}},

	redactionLevel:     {"redaction.level", allows, []numbering{{1, "11.1"}, {3, ""}}},
	redactionDomain:    {"redaction.domain", allows, []numbering{{1, "11.2"}, {3, ""}}},
	redactionOtherwise: {"redaction.otherwise", rejects, []numbering{{1, "11.3"}, {3, ""}}},

	otherwiseAllow: {"otherwise", allows, []numbering{{1, "12"}, {3, "11"}, {6, "10"}, {12, "11"}}},
}

// number is what room version v calls the rule, or "" where it has no such rule.
func (r rule) number(v int) string {
	number := ""
	for _, n := range ruleTable[r].numbers {
		if n.since <= v {
			number = n.number
		}
	}
	return number
}

// String is the rule's name.
func (r rule) String() string { return ruleTable[r].name }

// newestList is the newest room version whose list is in ruleTable.
const newestList = 12
