package ratelimit

import "fmt"

// Class groups the endpoints that share one budget per caller. The zero value is no class:
// an endpoint that does not state one is refused at start.
type Class uint8

// The classes. Every caller has one bucket in each.
const (
	_ Class = iota
	// None is not limited: answers from memory that cost less than the limiter would save,
	// and probes of load balancers.
	None
	// Message is sending events: messages, redactions, reactions.
	Message
	// State is changing a room's state, its aliases and its directory entry.
	State
	// Create is creating and upgrading rooms.
	Create
	// Join is joining, knocking on and leaving rooms.
	Join
	// Invite is inviting users.
	Invite
	// Login is logging in, by address, changing a password and ending an account.
	Login
	// LoginAccount is password attempts on one account, from wherever they come;
	// asked for by the accounts code and by no endpoint.
	LoginAccount
	// Mail is e-mails to one address, whoever asks for them; asked for by the accounts code and by no endpoint.
	Mail
	// Register is making accounts and asking for user names, by address.
	Register
	// Account is changing one's own account: profile, devices, account data, filters; and refreshing tokens, by address:
	// they cannot be guessed, and everyone behind an address must be able to every few minutes.
	Account
	// Media is uploading, downloading and previews.
	Media
	// Read is reading anything else: state, messages, profiles, directories.
	Read
	// Search is what makes the server work hard for one answer: search, hierarchies, directories of users.
	Search
	// Sync is /sync and sliding sync.
	Sync
	// Ephemeral is typing notices, receipts and presence.
	Ephemeral
	// Keys is uploading, querying and claiming encryption keys, and key backup.
	Keys
	// ToDevice is messages to devices. Calls send bursts of them.
	ToDevice
	// Delayed is delayed events. Every member of a call restarts one each second.
	Delayed
	// Federation is requests of other servers, by server.
	Federation
	// Admin is the administration API.
	Admin

	classes
)

var classNames = [classes]string{
	None: "none", Message: "message", State: "state", Create: "create", Join: "join", Invite: "invite",
	Login: "login", LoginAccount: "login_account", Mail: "mail", Register: "register", Account: "account", Media: "media",
	Read: "read", Search: "search", Sync: "sync", Ephemeral: "ephemeral", Keys: "keys",
	ToDevice: "to_device", Delayed: "delayed", Federation: "federation", Admin: "admin",
}

// Valid reports whether c is one of the named classes.
func (c Class) Valid() bool { return c > 0 && c < classes }

// String is the name of the class as in the configuration, for example "to_device".
func (c Class) String() string {
	if c.Valid() {
		return classNames[c]
	}
	return fmt.Sprintf("class(%d)", uint8(c))
}
