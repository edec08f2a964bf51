package httpapi

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"strings"
)

// ClientAddr is the address, without port, of the client whose request ctx belongs to; empty outside
// of a request. It serves what runs before the Caller is known, such as Config.Authenticate.
func ClientAddr(ctx context.Context) string {
	if c, ok := ctx.Value(callKey{}).(*call); ok {
		return c.by.Addr
	}
	return ""
}

// clientAddr is the address of a request's client: the peer's, or what trusted proxies say of it.
func (rt *Router) clientAddr(r *http.Request) string {
	addr := hostOnly(r.RemoteAddr)
	if len(rt.cfg.TrustedProxies) == 0 || !rt.trusted(addr) {
		return addr
	}
	// Each proxy appends the peer it saw; from the right, the first one that is no proxy of ours
	// is as far as the list can be believed.
	hops := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
	for i := len(hops) - 1; i >= 0; i-- {
		hop := hostOnly(strings.TrimSpace(hops[i]))
		if _, err := netip.ParseAddr(hop); err != nil {
			break
		}
		if addr = hop; !rt.trusted(hop) {
			break
		}
	}
	return addr
}

func (rt *Router) trusted(addr string) bool {
	ip, err := netip.ParseAddr(addr)
	if err != nil {
		return false
	}
	ip = ip.Unmap().WithZone("")
	for _, p := range rt.cfg.TrustedProxies {
		if p.Contains(ip) {
			return true
		}
	}
	return false
}

// hostOnly takes the port off an address.
func hostOnly(addr string) string {
	if strings.Count(addr, ":") == 1 || strings.HasPrefix(addr, "[") {
		if host, _, err := net.SplitHostPort(addr); err == nil {
			return host
		}
	}
	return strings.Trim(addr, "[]")
}
