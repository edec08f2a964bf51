package authrules

import (
	"crypto/ed25519"
	"slices"

	"github.com/myelin-im/myelin/internal/canonicaljson"
	"github.com/myelin-im/myelin/internal/signing"
	"github.com/myelin-im/myelin/roomserver/pdu"
)

// checkMember is the rule on m.room.member.
func (j *judge) checkMember() (rule, error) {
	ev := j.ev
	if !ev.IsState() || ev.Membership() == "" && ev.ContentField("membership") == nil {
		return j.reject(memberMalformed, "a membership needs a state key and a membership in its content")
	}
	if j.v.RestrictedJoins {
		// That the user's server has signed the event is checked with all other signatures.
		if user, present := ev.AuthorisedVia(); present && !pdu.ValidUserID(user) {
			return j.reject(memberAuthoriserSignature, "the user who authorises the join is not a user")
		}
	}
	switch membership := ev.Membership(); {
	case membership == MembershipJoin:
		return j.checkJoin()
	case membership == MembershipInvite:
		if invite := ev.ContentField("third_party_invite"); invite != nil {
			return j.checkThirdPartyInvite(invite)
		}
		return j.checkInvite()
	case membership == MembershipLeave:
		return j.checkLeave()
	case membership == MembershipBan:
		return j.checkBan()
	case membership == MembershipKnock && j.v.KnockAllowed:
		return j.checkKnock()
	}
	return j.reject(memberUnknown, "there is no such membership in this room version")
}

func (j *judge) checkJoin() (rule, error) {
	ev := j.ev
	if prev := ev.PrevEventIDs(); len(prev) == 1 && prev[0] == j.create.ID && j.isCreator(j.stateKey) {
		return joinFirst, nil
	}
	if ev.Sender != j.stateKey {
		return j.reject(joinOther, "nobody can join for someone else")
	}
	membership, err := j.membership(ev.Sender)
	if err != nil {
		return noRule, err
	}
	if membership == MembershipBan {
		return j.reject(joinBanned, "the user is banned from the room")
	}
	joinRules, err := j.state(pdu.TypeJoinRules, "")
	if err != nil {
		return noRule, err
	}
	joinRule := JoinRules(joinRules).Rule
	switch {
	case joinRule == JoinRuleInvite, joinRule == JoinRuleKnock && j.v.KnockAllowed:
		if isMember(membership) {
			return joinInvited, nil
		}
	case joinRule == JoinRuleRestricted && j.v.RestrictedJoins, joinRule == JoinRuleKnockRestricted && j.v.KnockRestricted:
		if isMember(membership) {
			return joinRestrictedMember, nil
		}
		return j.checkAuthoriser()
	case joinRule == JoinRulePublic:
		return joinPublic, nil
	}
	return j.reject(joinOtherwise, "the user is not invited to the room")
}

// checkAuthoriser is the part of the rules on restricted joins that concerns the member who lets the
// user in.
func (j *judge) checkAuthoriser() (rule, error) {
	user, present := j.ev.AuthorisedVia()
	if !present {
		return j.reject(joinRestrictedAuthoriser, "no member of the room authorised the join")
	}
	membership, err := j.membership(user)
	if err != nil {
		return noRule, err
	}
	if membership != MembershipJoin {
		return j.reject(joinRestrictedAuthoriser, "the user who authorised the join is not in the room")
	}
	levels, err := j.levels()
	if err != nil {
		return noRule, err
	}
	if levels.User(user) < levels.Invite() {
		return j.reject(joinRestrictedAuthoriser, "the power level of the user who authorised the join is too low to invite")
	}
	return joinRestrictedAllow, nil
}

func (j *judge) checkInvite() (rule, error) {
	sender, target, err := j.memberships()
	if err != nil {
		return noRule, err
	}
	if sender != MembershipJoin {
		return j.reject(inviteSender, "the sender is not in the room")
	}
	if target == MembershipJoin {
		return j.reject(inviteTarget, "the user is in the room already")
	}
	if target == MembershipBan {
		return j.reject(inviteTarget, "the user is banned from the room")
	}
	levels, err := j.levels()
	if err != nil {
		return noRule, err
	}
	if levels.User(j.ev.Sender) >= levels.Invite() {
		return inviteLevel, nil
	}
	return j.reject(inviteOtherwise, "the sender's power level is too low to invite")
}

func (j *judge) checkLeave() (rule, error) {
	ev := j.ev
	sender, target, err := j.memberships()
	if err != nil {
		return noRule, err
	}
	if ev.Sender == j.stateKey {
		if isMember(sender) || sender == MembershipKnock && j.v.KnockAllowed {
			return leaveSelf, nil
		}
		return j.reject(leaveSelf, "the user is not in the room")
	}
	if sender != MembershipJoin {
		return j.reject(leaveSender, "the sender is not in the room")
	}
	levels, err := j.levels()
	if err != nil {
		return noRule, err
	}
	level := levels.User(ev.Sender)
	if target == MembershipBan && level < levels.Ban() {
		return j.reject(leaveUnban, "the sender's power level is too low to lift a ban")
	}
	if level >= levels.Kick() && levels.User(j.stateKey) < level {
		return leaveKick, nil
	}
	return j.reject(leaveOtherwise, "the sender's power level is too low to remove the user")
}

func (j *judge) checkBan() (rule, error) {
	ev := j.ev
	sender, err := j.membership(ev.Sender)
	if err != nil {
		return noRule, err
	}
	if sender != MembershipJoin {
		return j.reject(banSender, "the sender is not in the room")
	}
	levels, err := j.levels()
	if err != nil {
		return noRule, err
	}
	if level := levels.User(ev.Sender); level >= levels.Ban() && levels.User(j.stateKey) < level {
		return banLevel, nil
	}
	return j.reject(banOtherwise, "the sender's power level is too low to ban the user")
}

func (j *judge) checkKnock() (rule, error) {
	joinRules, err := j.state(pdu.TypeJoinRules, "")
	if err != nil {
		return noRule, err
	}
	joinRule := JoinRules(joinRules).Rule
	if joinRule != JoinRuleKnock && !(joinRule == JoinRuleKnockRestricted && j.v.KnockRestricted) {
		return j.reject(knockJoinRule, "the room does not take knocks")
	}
	if j.ev.Sender != j.stateKey {
		return j.reject(knockOther, "nobody can knock for someone else")
	}
	membership, err := j.membership(j.ev.Sender)
	if err != nil {
		return noRule, err
	}
	if isMember(membership) || membership == MembershipBan {
		return j.reject(knockOtherwise, "the user is in the room, invited or banned")
	}
	return knockAllow, nil
}

// memberships are those of the sender and the target of a membership event.
func (j *judge) memberships() (sender, target string, err error) {
	if sender, err = j.membership(j.ev.Sender); err != nil {
		return "", "", err
	}
	if j.stateKey == j.ev.Sender {
		return sender, sender, nil
	}
	target, err = j.membership(j.stateKey)
	return sender, target, err
}

// isMember tells the memberships that let a user join by any rule.
func isMember(membership string) bool {
	return membership == MembershipJoin || membership == MembershipInvite
}

// isCreator tells the user whose first join needs no join rule. Additional creators, who follow in
// the list, are not meant.
func (j *judge) isCreator(userID string) bool {
	creators := createOf(j.create).creators
	return len(creators) > 0 && creators[0] == userID
}

// checkThirdPartyInvite is the rule on invites that answer an m.room.third_party_invite event. field
// is content.third_party_invite.
func (j *judge) checkThirdPartyInvite(field []byte) (rule, error) {
	ev := j.ev
	target, err := j.membership(j.stateKey)
	if err != nil {
		return noRule, err
	}
	if target == MembershipBan {
		return j.reject(thirdPartyBanned, "the user is banned from the room")
	}
	signed := canonicaljson.Member(field, "signed")
	if signed == nil {
		return j.reject(thirdPartySigned, "nothing is signed in the third-party invite")
	}
	mxid, token := canonicaljson.Member(signed, "mxid"), canonicaljson.Member(signed, "token")
	if mxid == nil || token == nil {
		return j.reject(thirdPartyFields, "the third-party invite lacks mxid or token")
	}
	if user, ok := text(mxid); !ok || user != j.stateKey {
		return j.reject(thirdPartyMXID, "the third-party invite is meant for someone else")
	}
	var offer *pdu.Event
	if key, ok := text(token); ok {
		if offer, err = j.state(pdu.TypeThirdPartyInvite, key); err != nil {
			return noRule, err
		}
	}
	if offer == nil {
		return j.reject(thirdPartyNoEvent, "there is no such third-party invite in the room")
	}
	if offer.Sender != ev.Sender {
		return j.reject(thirdPartySender, "the third-party invite is of another user")
	}
	if signedByOffer(signed, offer) {
		return thirdPartySignature, nil
	}
	return j.reject(thirdPartyOtherwise, "the third-party invite has no valid signature")
}

// maxVerifications bounds the work for one third-party invite: keys times signatures, each of which
// anybody can put into an event by the hundred. Honest invites need two or three.
const maxVerifications = 64

// signedByOffer reports whether any signature of the object matches any public key of an
// m.room.third_party_invite event.
func signedByOffer(signed []byte, offer *pdu.Event) bool {
	signatures := signing.Signatures(canonicaljson.Member(signed, "signatures"), "")
	message := signing.Message(nil, signed)
	tried := 0
	for _, key := range publicKeys(offer) {
		for _, s := range signatures {
			if tried++; tried > maxVerifications {
				return false
			}
			if signing.Verify(message, s.Value, key) == nil {
				return true
			}
		}
	}
	return false
}

// publicKeys are the keys in content.public_key and content.public_keys, each once.
func publicKeys(offer *pdu.Event) []ed25519.PublicKey {
	var keys []ed25519.PublicKey
	add := func(token []byte) {
		encoded, _ := text(token)
		key, err := signing.DecodeBase64(encoded)
		if err != nil || len(key) != ed25519.PublicKeySize || len(keys) >= maxVerifications ||
			slices.ContainsFunc(keys, func(k ed25519.PublicKey) bool { return string(k) == string(key) }) {
			return
		}
		keys = append(keys, key)
	}
	add(offer.ContentField("public_key"))
	for w := canonicaljson.Walk(offer.ContentField("public_keys")); w.Next(); {
		add(canonicaljson.Member(w.Value, "public_key"))
	}
	return keys
}
