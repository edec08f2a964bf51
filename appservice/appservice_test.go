package appservice

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const irc = `
id: "IRC Bridge"
url: "http://127.0.0.1:1234/"
as_token: "as-1"
hs_token: "hs-1"
sender_localpart: "_irc_bot"
namespaces:
  users:
    - exclusive: true
      regex: "@_irc_bridge_.*"
    - exclusive: false
      regex: "@.*_shared:example\\.org$"
  aliases:
    - {exclusive: true, regex: "#_irc_.*"}
  rooms: []
io.example.extension: true
`

func TestParse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "irc.yaml")
	if err := os.WriteFile(path, []byte(irc), 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	if r.ID != "IRC Bridge" || r.URL != "http://127.0.0.1:1234" || r.ASToken != "as-1" || r.HSToken != "hs-1" ||
		r.SenderLocalpart != "_irc_bot" || !r.RateLimited || r.ReceiveEphemeral {
		t.Errorf("not as written: %+v", r)
	}
	r, err = Parse([]byte("id: a\nurl: null\nas_token: b\nhs_token: c\nsender_localpart: d\nnamespaces: {}\nrate_limited: false\nreceive_ephemeral: true\nprotocols: [irc]"))
	if err != nil || r.URL != "" || r.RateLimited || !r.ReceiveEphemeral || len(r.Protocols) != 1 {
		t.Errorf("Parse = %+v, %v", r, err)
	}
}

func TestParseRefuses(t *testing.T) {
	tests := []struct{ text, want string }{
		{"[]", "not a registration"},
		{"id: [", "not a registration"},
		{"id: a", "as_token: missing"},
		{"id: a", "hs_token: missing"},
		{"id: a", "sender_localpart: missing"},
		{"id: a", "namespaces: missing"},
		{"id: ''\nnamespaces: {}", "id: missing"},
		{strings.Replace(irc, "http://127.0.0.1:1234/", "localhost", 1), "url:"},
		{strings.Replace(irc, "_irc_bot", "@_irc_bot:a", 1), "sender_localpart:"},
		{strings.Replace(irc, "@_irc_bridge_.*", "@(", 1), "namespaces.users[0].regex:"},
		{strings.Replace(irc, "@_irc_bridge_.*", "@(?!x)", 1), "look-around"},
		{strings.Replace(irc, `regex: "@_irc_bridge_.*"`, "other: 1", 1), "namespaces.users[0].regex: missing"},
	}
	for _, tt := range tests {
		_, err := Parse([]byte(tt.text))
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("Parse(%.40q) = %v, want it to name %q", tt.text, err, tt.want)
		}
	}
	if _, err := Load(filepath.Join(t.TempDir(), "none.yaml")); err == nil {
		t.Error("a missing file is loaded")
	}
}

func TestSet(t *testing.T) {
	a, err := Parse([]byte(irc))
	if err != nil {
		t.Fatal(err)
	}
	b := &Registration{ID: "b", ASToken: "as-2", SenderLocalpart: "bot"}
	s, err := NewSet("example.org", a, b)
	if err != nil {
		t.Fatal(err)
	}
	owns := map[string]bool{
		"@_irc_bot:example.org":        true, // the sender, outside its namespaces
		"@_irc_bridge_joe:example.org": true,
		"@x_shared:example.org":        true,
		"@x_shared:example.orga":       false,
		"@_irc_bridge_joe:other":       false, // namespaces hold for local users only
		"@a@_irc_bridge_:example.org":  false, // they hold from the start
		"@joe:example.org":             false,
		"":                             false,
	}
	for id, want := range owns {
		if got := s.Owns(a, id); got != want {
			t.Errorf("Owns(%q) = %v", id, got)
		}
	}
	reserved := map[string]*Registration{
		"@_irc_bot:example.org": a, "@_irc_bridge_joe:example.org": a, "@x_shared:example.org": nil,
		"@bot:example.org": b, "@joe:example.org": nil, "@_irc_bridge_joe:other": nil,
	}
	for id, want := range reserved {
		if got := s.ReservedUser(id); got != want {
			t.Errorf("ReservedUser(%q) = %v", id, got)
		}
	}
	if s.ReservedAlias("#_irc_x:example.org") != a || s.ReservedAlias("#x:example.org") != nil {
		t.Error("ReservedAlias does not follow the namespaces")
	}
	if s.ByToken("as-2") != b || s.ByToken("hs-1") != nil || s.ByToken("") != nil {
		t.Error("ByToken does not follow as_token")
	}
	if _, err := NewSet("example.org", a, &Registration{ID: "IRC Bridge", ASToken: "x"}); err == nil {
		t.Error("two registrations with one id are accepted")
	}
	if _, err := NewSet("example.org", a, &Registration{ID: "x", ASToken: "as-1"}); err == nil {
		t.Error("two registrations with one as_token are accepted")
	}
	var none *Set
	if none.ByToken("") != nil || none.ReservedUser("@a:b") != nil || none.ReservedAlias("#a:b") != nil {
		t.Error("a nil Set claims something")
	}
}
