package pdu

import (
	"strings"
	"unicode/utf8"
)

// ValidUserID reports whether id has the form of a user ID, of those that
// servers must accept from each other: the localpart may be empty and hold any
// character but a colon and NUL. Its length is not judged.
//
// spec: appendices v1.19 "Historical User IDs"
func ValidUserID(id string) bool { return validID(id, '@') }

// validID reports whether id is sigil, localpart, colon, server name.
func validID(id string, sigil byte) bool {
	if len(id) == 0 || id[0] != sigil || !utf8.ValidString(id) {
		return false
	}
	localpart, server, ok := strings.Cut(id[1:], ":")
	return ok && strings.IndexByte(localpart, 0) < 0 && ValidServerName(server)
}

// validHashID reports whether id is a sigil and an unpadded URL-safe SHA-256.
func validHashID(id string, sigil byte) bool {
	if len(id) != 44 || id[0] != sigil {
		return false
	}
	for i := 1; i < len(id); i++ {
		if c := id[i]; !alphanumeric(c) && c != '-' && c != '_' {
			return false
		}
	}
	return true
}

// ValidServerName reports whether name follows the grammar of server names: a
// DNS name, IPv4 address or bracketed IPv6 address, and a port if any.
//
// spec: appendices v1.19 "Server Name"
func ValidServerName(name string) bool {
	if strings.HasPrefix(name, "[") {
		end := strings.IndexByte(name, ']')
		return end > 0 && validIPv6(name[1:end]) && validPort(name[end+1:])
	}
	host, port := name, ""
	if i := strings.IndexByte(name, ':'); i >= 0 {
		host, port = name[:i], name[i:]
	}
	return validDNSName(host) && validPort(port)
}

func validDNSName(host string) bool {
	if len(host) == 0 || len(host) > 255 {
		return false
	}
	for i := range len(host) {
		if c := host[i]; !alphanumeric(c) && c != '-' && c != '.' {
			return false
		}
	}
	return true
}

func validIPv6(host string) bool {
	if len(host) < 2 || len(host) > 45 {
		return false
	}
	for i := range len(host) {
		c := host[i]
		if !(digit(c) || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F' || c == ':' || c == '.') {
			return false
		}
	}
	return true
}

// validPort takes the colon as well, or nothing.
func validPort(port string) bool {
	if port == "" {
		return true
	}
	if len(port) < 2 || len(port) > 6 || port[0] != ':' {
		return false
	}
	for i := 1; i < len(port); i++ {
		if !digit(port[i]) {
			return false
		}
	}
	return true
}

func digit(c byte) bool { return '0' <= c && c <= '9' }

func alphanumeric(c byte) bool {
	return digit(c) || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
}
