// Package accounts owns local users and everything that is theirs alone: registration, login, devices, access and
// refresh tokens, passwords, account data, tags, profiles, filters, and what the server says of itself to clients
// (versions, capabilities, .well-known).
//
// # Tokens
//
// An access token is 32 random bytes in base64 with a prefix; the database holds its SHA-256 alone. Authenticate
// answers from memory: a token is read from the database once and stays in a bounded cache until an account changes.
// Every change of an account, its devices or its tokens ends with tokenCache.forget, or with a notice of kind
// storage.DeviceList that does the same, before the change is answered. See session.go.
//
// Sessions that can refresh count generations: a refresh makes generation n+1 and leaves n valid until n+1 is first
// used, so that a lost answer harms nobody. Showing a refresh token that is revoked ends the whole session (soft
// logout), because somebody holds a copy of it. See refresh.go.
//
// # Passwords
//
// Passwords are hashed with argon2id (RFC 9106) by at most as many goroutines as configured; the rest wait, and when
// too many wait they are told to come again later.
//
// # E-mail addresses
//
// An address is confirmed by a link that is sent to it; the confirmation serves one registration, password reset or
// addition to an account. What the answers to such requests say never depends on whether an account has the address:
// that is told in the e-mail. See email.go, emailpage.go and threepid.go.
//
// # OpenID
//
// Users show other services who they are with OpenID tokens, which the services bring back to
// /_matrix/federation/v1/openid/userinfo. See openid.go.
//
// # Work in rooms
//
// A change of display name or avatar writes membership events, a deactivation leaves rooms. Both are jobs in a table,
// so that they go on after a restart; Run works them off. See jobs.go.
//
// # Other features
//
// What else belongs to a device or an account (keys, to-device messages, pushers) is deleted by its own feature, in
// the same transaction, through Hooks.
//
// Spec: client-server API v1.19, "Client Authentication" (legacy API), "Capabilities negotiation", "Filtering",
// "Profiles", "Client Config", "Room Tagging", "Device Management", "Guest Access", "API Versions", "Well-known
// URIs", "OpenID", "Server Administration", "Account moderation"; application-service API v1.19, "Identity assertion" and "Server admin style permissions"; MSC3391 (deleting
// account data), MSC4069 and MSC4466 (propagation of profile changes).
package accounts
