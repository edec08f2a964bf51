package federation

import (
	"strings"
	"testing"
)

// spec: server-server-api v1.19 "Request Authentication"; RFC 9110 section 11.4
func TestParseCredentials(t *testing.T) {
	whole := credentials{"a.org:8448", "b.org", "ed25519:1", "c2ln"}
	without := whole
	without.destination = ""
	for _, c := range []struct {
		header string
		want   credentials
	}{
		{`X-Matrix origin="a.org:8448",destination="b.org",key="ed25519:1",sig="c2ln"`, whole},
		{`X-Matrix origin=a.org:8448,destination=b.org,key=ed25519:1,sig=c2ln`, whole},
		{"x-matrix   Origin=\"a.org:8448\" \t, DESTINATION = b.org ,key=\"ed25519:1\",,sig=c2ln , ", whole},
		{`X-Matrix sig="c2ln",key="ed25519:1",destination="b.org",origin="a.org:8448",more="x,y=\"z"`, whole},
		{`X-Matrix origin="a\.org:8448",destination="b.org",key="ed25519\:1",sig="c2ln"`, whole},
		{`X-Matrix origin="a.org:8448",key="ed25519:1",sig="c2ln"`, without},
	} {
		if got, err := parseCredentials(c.header); err != nil || got != c.want {
			t.Errorf("%s: %+v, %v", c.header, got, err)
		}
	}
	for _, header := range []string{
		``, `X-Matrix`, `X-Matrix `, `Bearer x`, `X-Matrixorigin="a"`, `X-Matrix origin="a.org"`, `X-Matrix origin=a,key=b`, `X-Matrix key=b,sig=c`,
		`X-Matrix origin="a.org,key="b",sig="c"`, `X-Matrix origin="a.org" key="b",sig="c"`, `X-Matrix origin=a.org,origin=b.org,key=b,sig=c`,
		`X-Matrix origin=a"b,key=b,sig=c`, `X-Matrix origin="a\`, `X-Matrix "a"="b",origin=a,key=b,sig=c`, `X-Matrix origin,key=b,sig=c`,
		`X-Matrix origin=a,key=b,sig=c,destination=""`, `X-Matrix origin=a,destination=b,destination=c,key=b,sig=c`, `X-Matrix =x,origin=a,key=b,sig=c`,
	} {
		if got, err := parseCredentials(header); err == nil {
			t.Errorf("%s: %+v", header, got)
		}
	}
}

func FuzzParseCredentials(f *testing.F) {
	for _, seed := range []string{`X-Matrix origin="a",key="b",sig="c"`, `X-Matrix origin=a , key="\"",sig=c`, `X-Matrix a="\`} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, header string) {
		c, err := parseCredentials(header)
		if err == nil && (c.origin == "" || c.key == "" || c.signature == "") {
			t.Errorf("%q: %+v", header, c)
		}
	})
}

func TestGlob(t *testing.T) {
	for _, c := range []struct {
		pattern, name string
		want          bool
	}{
		{"", "", true}, {"*", "", true}, {"*", "a.org", true}, {"a.org", "a.org", true}, {"a.org", "b.org", false}, {"*.org", "a.org", true}, {"*.org", "org", false},
		{"a*", "a", true}, {"a*b*c", "axxbyyc", true}, {"a*b*c", "axxbyy", false}, {"?.org", "a.org", true}, {"?.org", ".org", false}, {"?", "", false},
		{"*a*a*a*a*a*a*b", strings.Repeat("a", 200), false}, {"**", "x", true}, {"a?c*", "abcd", true}, {"[a]", "a", false},
	} {
		if got := glob(c.pattern, c.name); got != c.want {
			t.Errorf("glob(%q, %q) = %v", c.pattern, c.name, got)
		}
	}
}

// spec: client-server-api v1.19 "Server Access Control Lists (ACLs) for rooms"
func TestACL(t *testing.T) {
	for _, c := range []struct {
		content string
		allowed string
		denied  string
	}{
		{`{"allow":["*"]}`, "a.org a.org:1 1.2.3.4 [::1] [::1]:5", ""},
		{`{"allow":["*"],"deny":["*.evil.org","EVIL.org"]}`, "a.org notevil.org", "evil.org evil.org:8448 x.evil.org Evil.ORG x.EVIL.org:1"},
		{`{"allow":["a.org"]}`, "a.org a.org:99 A.org", "b.org x.a.org"},
		{`{"allow":["*"],"allow_ip_literals":false}`, "a.org", "1.2.3.4 1.2.3.4:5 [::1] [::1]:5"},
		{`{"allow":["1.2.*","[::1]"]}`, "1.2.3.4 [::1]:5", "1.3.3.4 [::2]"},
		{`{"allow":["*"],"deny":["1.2.3.4"]}`, "1.2.3.5", "1.2.3.4:8448"},
		{`{}`, "", "a.org 1.2.3.4"},
		{`{"allow":"*"}`, "", "a.org"},
		{`{"allow":[5,null,"*"],"deny":"a.org"}`, "a.org", ""},
		{`{"allow":["*"],"allow_ip_literals":"false"}`, "1.2.3.4", ""},
		{`{"allow":["*"]}`, "", "not_a_name"},
	} {
		list := parseACL([]byte(c.content))
		for _, server := range strings.Fields(c.allowed) {
			if !list.allows(server) {
				t.Errorf("%s denies %s", c.content, server)
			}
		}
		for _, server := range strings.Fields(c.denied) {
			if list.allows(server) {
				t.Errorf("%s allows %s", c.content, server)
			}
		}
	}
	if !(*acl)(nil).allows("a.org") {
		t.Error("a room without a list denies a server")
	}
}

func TestPolicy(t *testing.T) {
	for _, c := range []struct {
		allow, deny     string
		allowed, denied string
	}{
		{"", "", "a.org b.org:1 [::1]", ""},
		{"", "*.evil.org evil.org b.org:1", "a.org b.org:2 b.org", "evil.org:8448 x.Evil.org b.org:1"},
		{"a.org *.a.org", "", "a.org A.org:1 x.a.org", "b.org"},
		{"a.org *.a.org", "bad.a.org", "a.org x.a.org", "bad.a.org b.org"},
		{"::1 10.0.0.?", "", "[::1]:5 10.0.0.1:8448", "[::2] 10.0.0.11"},
	} {
		p := NewPolicy(strings.Fields(c.allow), strings.Fields(c.deny))
		for _, server := range strings.Fields(c.allowed) {
			if !p.Allows(server) {
				t.Errorf("allow %q deny %q: %s is refused", c.allow, c.deny, server)
			}
		}
		for _, server := range strings.Fields(c.denied) {
			if p.Allows(server) {
				t.Errorf("allow %q deny %q: %s is let in", c.allow, c.deny, server)
			}
		}
	}
}
