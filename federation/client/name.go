package client

import (
	"net"
	"net/netip"
	"strconv"
	"strings"

	"golang.org/x/net/idna"
)

// Name is a server name taken apart.
type Name struct {
	// Host is a DNS name, or an IP address without brackets.
	Host string
	// Port is 1 to 65535, or 0 if the name has none.
	Port int
	// IP is valid if Host is an IP address.
	IP netip.Addr
}

// ParseName takes a server name apart; ok is false if it does not follow the grammar or cannot be connected to.
//
// spec: appendices v1.19 "Server Name"
func ParseName(server string) (name Name, ok bool) {
	if server == "" || len(server) > 255 {
		return Name{}, false
	}
	host, port := server, ""
	if inner, found := strings.CutPrefix(server, "["); found { // IPv6
		inner, rest, closed := strings.Cut(inner, "]")
		ip, err := netip.ParseAddr(inner)
		if !closed || err != nil || !ip.Is6() || ip.Zone() != "" {
			return Name{}, false
		}
		name.Host, name.IP = inner, ip
		if rest == "" {
			return name, true
		}
		if port, ok = strings.CutPrefix(rest, ":"); !ok {
			return Name{}, false
		}
	} else {
		if i := strings.IndexByte(server, ':'); i >= 0 {
			if host, port = server[:i], server[i+1:]; port == "" {
				return Name{}, false
			}
		}
		if !validHost(host) {
			return Name{}, false
		}
		name.Host = host
		if ip, err := netip.ParseAddr(host); err == nil {
			name.IP = ip
		}
		if port == "" {
			return name, true
		}
	}
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil || number == 0 || len(port) > 5 {
		return Name{}, false
	}
	name.Port = int(number)
	return name, true
}

func validHost(host string) bool {
	for i := range len(host) {
		switch c := host[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '.':
		default:
			return false
		}
	}
	return host != ""
}

// asciiName writes the host of a delegated name in ASCII, should somebody have published it as people read it (RFC 5891).
// Server names themselves are ASCII by their grammar.
func asciiName(server string) string {
	ascii := true
	for i := range len(server) {
		ascii = ascii && server[i] < 0x80
	}
	if ascii {
		return server
	}
	host, port, _ := strings.Cut(server, ":")
	host, err := idna.Lookup.ToASCII(host)
	if err != nil {
		return ""
	}
	if port != "" {
		return net.JoinHostPort(host, port)
	}
	return host
}
