package federation

import (
	"strings"

	"github.com/tidwall/gjson"

	"github.com/myelin-im/myelin/federation/client"
)

// maxACL bounds how many patterns of a list are looked at. An event has room for more, but then each event of the room
// would cost more to judge than to receive.
const maxACL = 10_000

// acl is the content of an m.room.server_acl event. A nil acl, that of a room without the event, allows every server.
type acl struct {
	allow, deny []string
	denyIPs     bool
}

// parseACL reads the content of an m.room.server_acl event. What has the wrong type counts as missing.
//
// spec: client-server-api v1.19 "Server Access Control Lists (ACLs) for rooms"
func parseACL(content []byte) *acl {
	c := gjson.ParseBytes(content)
	patterns := func(name string) (list []string) {
		member := c.Get(name)
		if !member.IsArray() {
			return nil
		}
		member.ForEach(func(_, pattern gjson.Result) bool {
			if pattern.Type == gjson.String {
				list = append(list, strings.ToLower(pattern.Str))
			}
			return len(list) < maxACL
		})
		return list
	}
	return &acl{allow: patterns("allow"), deny: patterns("deny"), denyIPs: c.Get("allow_ip_literals").Type == gjson.False}
}

// allows tells whether a server may take part in the room. Its port does not matter.
func (a *acl) allows(server string) bool {
	if a == nil {
		return true
	}
	name, ok := client.ParseName(strings.ToLower(server))
	if !ok || a.denyIPs && name.IP.IsValid() {
		return false
	}
	host := name.Host
	if name.IP.Is6() {
		host = "[" + host + "]"
	}
	for _, pattern := range a.deny {
		if glob(pattern, host) {
			return false
		}
	}
	for _, pattern := range a.allow {
		if glob(pattern, host) {
			return true
		}
	}
	return false
}
