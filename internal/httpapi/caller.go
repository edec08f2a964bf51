package httpapi

import "strings"

// Access says who may call an endpoint. Bits are joined: a caller is let in if any bit admits them.
type Access uint16

const (
	// Anyone is let in without credentials; a token is not looked at.
	Anyone Access = 1 << iota
	// Optional lets in callers without a token; a token that is present must be good, and
	// the caller is then known to the handler.
	Optional
	// Guest admits guest accounts.
	Guest
	// User admits every account but guests, including users an application service acts as.
	User
	// Appservice admits application services, whoever they act as.
	Appservice
	// Server admits other homeservers, by the signature of their request.
	Server
	// Admin admits server administrators.
	Admin

	// token is every kind of caller that shows an access token.
	token = Optional | Guest | User | Appservice | Admin
)

var accessNames = []string{"anyone", "optional", "guest", "user", "appservice", "server", "admin"}

// String lists the bits, for example "guest|user".
func (a Access) String() string {
	var names []string
	for i, name := range accessNames {
		if a&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	return strings.Join(names, "|")
}

// admits reports whether an authenticated caller is let in.
func (a Access) admits(c *Caller) bool {
	switch {
	case a&Optional != 0:
		return true
	case a&User != 0 && !c.Guest:
		return true
	case a&Guest != 0 && c.Guest:
		return true
	case a&Appservice != 0 && c.Appservice != nil:
		return true
	}
	return a&Admin != 0 && c.Admin
}

// Caller is who makes a request. Handlers get one that is never nil; UserID is empty for
// callers without credentials.
type Caller struct {
	// UserID is the full user ID, also of the user an application service acts as.
	UserID string
	// Localpart is the part of UserID between "@" and ":".
	Localpart string
	// DeviceID is the device of the token; empty for application services that name none.
	DeviceID string
	// Guest is a guest account.
	Guest bool
	// Admin is a server administrator.
	Admin bool
	// Locked accounts reach only endpoints that allow it (see Endpoint.EvenLocked).
	Locked bool
	// Suspended accounts may read; endpoints that are not for them say so (see Endpoint.UnlessSuspended),
	// and handlers refuse what depends on the request.
	Suspended bool
	// TokenID identifies the access token in the accounts' table.
	TokenID int64
	// Appservice is the application service whose token was shown, or nil.
	Appservice *AppserviceInfo
	// Origin is the server name of a homeserver that signed the request.
	Origin string
	// Addr is the client's address without port; set by the router, whatever Authenticate fills in.
	Addr string
}

// AppserviceInfo is what the HTTP layer and handlers need to know about a calling application service.
type AppserviceInfo struct {
	// ID is the registration's id.
	ID string
	// RateLimited is the registration's rate_limited for the user it acts as.
	RateLimited bool
}
