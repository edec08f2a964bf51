package accounts

import "testing"

func TestInviteVerdict(t *testing.T) {
	rules := func(verdicts ...inviteRule) InvitePermission { return InvitePermission{rules: verdicts} }
	blockServers := inviteRule{patterns: []string{"evil.example", "*.evil.example"}, server: true, verdict: InviteBlocked}
	for _, test := range []struct {
		name   string
		p      InvitePermission
		sender string
		want   InviteVerdict
	}{
		{"nothing", rules(), "@a:good.example", InviteAllowed},
		{"everything", InvitePermission{blockAll: true}, "@a:good.example", InviteBlocked},
		{"a server", rules(blockServers), "@a:evil.example", InviteBlocked},
		{"a pattern of servers", rules(blockServers), "@a:very.evil.example", InviteBlocked},
		{"another server", rules(blockServers), "@a:notevil.example", InviteAllowed},
		{"a server with a port", rules(blockServers), "@a:evil.example:8448", InviteAllowed},
		{"an exception", rules(inviteRule{patterns: []string{"@a:evil.example"}}, blockServers), "@a:evil.example", InviteAllowed},
		{"no exception", rules(inviteRule{patterns: []string{"@a:evil.example"}}, blockServers), "@b:evil.example", InviteBlocked},
		{"hidden", rules(inviteRule{patterns: []string{"@spam?:*"}, verdict: InviteHidden}), "@spam1:any.example", InviteHidden},
		{"one character", rules(inviteRule{patterns: []string{"@spam?:*"}, verdict: InviteHidden}), "@spam:any.example", InviteAllowed},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := test.p.Of(test.sender); got != test.want {
				t.Errorf("the verdict is %d, want %d", got, test.want)
			}
		})
	}
}
