package httpapi

import "context"

// ClientAddr is the address, without port, of the client whose request ctx belongs to; empty outside
// of a request. It serves what runs before the Caller is known, such as Config.Authenticate.
func ClientAddr(ctx context.Context) string {
	if c, ok := ctx.Value(callKey{}).(*call); ok {
		return c.by.Addr
	}
	return ""
}
