// Package publicnet keeps outgoing connections, which strangers can cause, on the public internet.
//
// A name may resolve to a public address when it is checked and to 127.0.0.1 when it is dialled. So the check is made on
// the address of the socket, just before it connects.
package publicnet

import (
	"errors"
	"fmt"
	"net/netip"
	"syscall"
)

// ErrNotPublic is wrapped by errors about addresses that are not on the public internet.
var ErrNotPublic = errors.New("not a public address")

// special are the ranges that netip has no name for (IANA special-purpose address registries).
var special = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),       // this network
	netip.MustParsePrefix("100.64.0.0/10"),   // shared by carriers
	netip.MustParsePrefix("192.0.0.0/24"),    // protocol assignments
	netip.MustParsePrefix("192.0.2.0/24"),    // documentation
	netip.MustParsePrefix("192.88.99.0/24"),  // relays of 6to4
	netip.MustParsePrefix("198.18.0.0/15"),   // benchmarks
	netip.MustParsePrefix("198.51.100.0/24"), // documentation
	netip.MustParsePrefix("203.0.113.0/24"),  // documentation
	netip.MustParsePrefix("240.0.0.0/4"),     // reserved, broadcast
	netip.MustParsePrefix("::/96"),           // IPv4-compatible
	netip.MustParsePrefix("64:ff9b::/96"),    // IPv4 behind NAT64: which one, only the gateway knows
	netip.MustParsePrefix("64:ff9b:1::/48"),  // the same, locally
	netip.MustParsePrefix("100::/64"),        // discarded
	netip.MustParsePrefix("2001::/23"),       // protocol assignments, Teredo
	netip.MustParsePrefix("2001:db8::/32"),   // documentation
	netip.MustParsePrefix("2002::/16"),       // 6to4
	netip.MustParsePrefix("3fff::/20"),       // documentation
	netip.MustParsePrefix("fec0::/10"),       // site-local
}

// Check returns an error that wraps ErrNotPublic if an address is loopback, private, link-local, multicast or of another
// special purpose.
func Check(addr netip.Addr) error {
	addr = addr.Unmap().WithZone("")
	bad := !addr.IsValid() || addr.IsLoopback() || addr.IsPrivate() || addr.IsLinkLocalUnicast() || addr.IsMulticast() || addr.IsUnspecified()
	for i := 0; i < len(special) && !bad; i++ {
		bad = special[i].Contains(addr)
	}
	if bad {
		return fmt.Errorf("%s: %w", addr, ErrNotPublic)
	}
	return nil
}

// Control is a net.Dialer's Control that refuses what Check refuses.
func Control(_, address string, _ syscall.RawConn) error {
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("%s: %w", address, ErrNotPublic)
	}
	return Check(at.Addr())
}
