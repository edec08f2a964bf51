package accounts

import (
	"fmt"
	"strings"

	"github.com/tidwall/gjson"

	"github.com/myelin-im/myelin/storage"
)

// InviteVerdict is what becomes of an invite by the wish of the user who is invited.
type InviteVerdict int

// The verdicts.
const (
	// InviteAllowed invites are shown.
	InviteAllowed InviteVerdict = iota
	// InviteHidden ones happen, but are not shown to the user.
	InviteHidden
	// InviteBlocked ones are refused.
	InviteBlocked
)

// InvitePermission is whose invites a user wants: by m.invite_permission_config (client-server API v1.19, "Invite
// permission"), and by the finer rules of MSC4155.
type InvitePermission struct {
	blockAll bool
	server   string       // the server's own user, whose notices everybody gets
	rules    []inviteRule // the first that fits decides
}

// inviteRule gives the verdict on senders, by their ids or servers, that fit one of some patterns.
type inviteRule struct {
	patterns []string
	server   bool
	verdict  InviteVerdict
}

// typeInviteRules is the account data of MSC4155.
const typeInviteRules = "org.matrix.msc4155.invite_permission_config"

// inviteLists are the members of that account data, in the order of their precedence.
var inviteLists = []struct {
	member  string
	server  bool
	verdict InviteVerdict
}{
	{"allowed_users", false, InviteAllowed}, {"ignored_users", false, InviteHidden}, {"blocked_users", false, InviteBlocked},
	{"allowed_servers", true, InviteAllowed}, {"ignored_servers", true, InviteHidden}, {"blocked_servers", true, InviteBlocked},
}

// maxInvitePatterns bounds each of the lists.
const maxInvitePatterns = 1000

// InvitePermissionOf reads whose invites a local user wants.
func InvitePermissionOf(tx *storage.Tx, userID string) (p InvitePermission, err error) {
	content, err := AccountDatum(tx, userID, "", "m.invite_permission_config")
	if err != nil {
		return p, fmt.Errorf("invite permission of %s: %w", userID, err)
	}
	p.blockAll = gjson.GetBytes(content, "default_action").Str == "block"
	if content, err = AccountDatum(tx, userID, "", typeInviteRules); err != nil {
		return p, fmt.Errorf("invite permission of %s: %w", userID, err)
	}
	for _, l := range inviteLists {
		rule := inviteRule{server: l.server, verdict: l.verdict}
		for _, v := range gjson.GetBytes(content, l.member).Array() {
			if v.Type == gjson.String && len(rule.patterns) < maxInvitePatterns {
				rule.patterns = append(rule.patterns, v.Str)
			}
		}
		if rule.patterns != nil {
			p.rules = append(p.rules, rule)
		}
	}
	if p.Any() {
		_, err = tx.Get(`SELECT user_id FROM accounts WHERE kind = 3 ORDER BY user_id LIMIT 1`, nil, &p.server)
	}
	return p, err
}

// Any tells whether there is a sender whose invites the user may not want.
func (p InvitePermission) Any() bool { return p.blockAll || len(p.rules) > 0 }

// Of is the verdict on an invite by a sender.
func (p InvitePermission) Of(sender string) InviteVerdict {
	if sender == p.server {
		return InviteAllowed
	}
	if p.blockAll {
		return InviteBlocked
	}
	_, server, _ := strings.Cut(sender, ":")
	for _, r := range p.rules {
		name := sender
		if r.server {
			name = server
		}
		for _, pattern := range r.patterns {
			if fitsGlob(pattern, name) {
				return r.verdict
			}
		}
	}
	return InviteAllowed
}

// fitsGlob matches a name against a pattern in which * stands for any characters and ? for one.
func fitsGlob(pattern, name string) bool {
	star, next := -1, 0 // the last * and where what it stands for would go on
	p := 0
	for n := 0; n < len(name); {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, next = p, n
			p++
		case p < len(pattern) && (pattern[p] == '?' || pattern[p] == name[n]):
			p++
			n++
		case star >= 0:
			next++
			p, n = star+1, next
		default:
			return false
		}
	}
	return strings.Trim(pattern[p:], "*") == ""
}
