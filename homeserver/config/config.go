// Package config is everything an operator may set: one typed structure, filled from defaults, one YAML file and
// the environment, checked completely before anything starts.
//
// A setting is one row of the table in keys.go: its name, default, what is allowed, and the text that says what it
// does and when to change it. Loading, the refusal of bad values, the sample that "myelin config print" writes and
// docs/configuration.md all come from that row, so they cannot disagree.
//
// Settings reach the rest of the server in pieces, passed to constructors; nothing below the homeserver package
// knows this one.
package config

import (
	"net/netip"
	"time"

	"github.com/myelin-im/myelin/internal/ratelimit"
)

// Config is a complete, checked configuration. The meaning, default and bounds of each field stand in keys.go.
type Config struct {
	Server        Server
	Client        Client
	Federation    Federation
	Database      Database
	Registration  Registration
	Sessions      Sessions
	Email         Email
	Passwords     Passwords
	Rooms         Rooms
	Retention     Retention
	DelayedEvents DelayedEvents
	Push          Push
	Notices       Notices
	Presence      Presence
	Media         Media
	Limits        Limits
	RateLimits    ratelimit.Config
	Appservices   Appservices
	Logging       Logging
	Metrics       Metrics

	// Strangers are the variables of the environment, sorted, that are named MYELIN_… and after no section. They are someone
	// else's, such as an orchestrator's, or mistyped.
	Strangers []string

	source map[string]string // of the settings that are not defaults, by key: Problem.Where
}

// Problem is what is wrong with a setting, with where it stands.
func (c *Config) Problem(key, text string) Problem {
	return Problem{Where: c.source[key], Key: key, Text: text}
}

// Server says who this server is.
type Server struct {
	Name      string // domain part of the identifiers it makes
	DataDir   string
	ClientURL string // what /.well-known/matrix/client tells; empty: nothing
	// What /.well-known/matrix/support tells; empty: nothing.
	SupportEmail, SupportPage string
	PolicyKey                 string // what /.well-known/matrix/policy_server tells; empty: nothing
}

// Listener is an address to listen on, with TLS if a certificate is given.
type Listener struct {
	Address string // host:port; empty: off
	TLSCert string // PEM file
	TLSKey  string // PEM file
}

// Client is the listener for clients.
type Client struct {
	Listener
	TrustedProxies []netip.Prefix // whose X-Forwarded-For is believed
}

// Federation is the listener for other servers and how this server reaches them.
type Federation struct {
	Listener
	PublicAddress         string // what /.well-known/matrix/server tells, host:port; empty: nothing
	CACert                string // PEM file with authorities trusted beside the system's
	AllowPrivateAddresses bool
	Allow, Deny           []string      // patterns of server names; an empty Allow allows all
	TrustedKeyServers     []string      // notaries for signing keys
	UndeliveredMessages   time.Duration // how long messages wait for the devices of a server that is away; 0: for ever
}

// Database says where durable data lives.
type Database struct {
	URL     string // empty: SQLite in the data folder
	Readers int    // connections for reading; 0: chosen by storage
}

// Registration says who may make an account.
type Registration struct {
	Open         bool
	RequireToken bool
	RequireEmail bool
	SharedSecret string
	Guests       bool
	TermsURL     string // empty: no terms to accept
	TermsName    string
	TermsVersion string
}

// Sessions are the lifetimes of logins.
type Sessions struct {
	AccessTokenLifetime time.Duration // of sessions that can refresh
}

// Passwords are what they must be like, and the costs of argon2id.
type Passwords struct {
	MinLength  int   // in characters
	Memory     int64 // bytes per hash
	Iterations int
	Parallel   int // hashes at the same time; 0: one per processor
}

// Email says how e-mail is sent and what it looks like.
type Email struct {
	SMTP           string // host:port; empty: no e-mail
	TLS            string // starttls, tls or none
	User, Password string // empty: without logging in
	From, AppName  string
	Templates      string // a folder; empty: the built-in ones
	UnreadAfter    time.Duration
}

// Rooms says what rooms are like.
type Rooms struct {
	DefaultVersion string // of rooms whose creator asks for none
}

// Retention says how long messages and rooms are kept.
type Retention struct {
	Enabled        bool
	Default        time.Duration // of messages in rooms that set no lifetime; 0: forever
	AtLeast        time.Duration // the shortest lifetime that a room can set
	AtMost         time.Duration // the longest lifetime; 0: no bound
	PurgeInterval  time.Duration // how often what expired is deleted
	AbandonedRooms time.Duration // how long a room is kept that everyone has forgotten; 0: forever
}

// DelayedEvents bound the events that are to be sent later.
type DelayedEvents struct {
	MaxDelay     time.Duration
	MaxScheduled int // of one user; 0: none
}

// Push says what pushers may do, and which apps the gateway in this server knows.
type Push struct {
	// AllowPrivateAddresses lets push gateways have private addresses and speak plain HTTP.
	AllowPrivateAddresses bool
	WebPushApps           []string // patterns of app_ids
	Contact               string
	APNs                  APNs
	FCM                   FCM
}

// APNs is the app on Apple's devices; AppID is empty if there is none.
type APNs struct {
	AppID, Topic, Key, KeyID, TeamID string
	Sandbox                          bool
}

// FCM is the app on devices with Google's services; AppID is empty if there is none.
type FCM struct {
	AppID, ServiceAccount string
}

// Notices says as whom the server speaks to its users, and where.
type Notices struct {
	Localpart, DisplayName, AvatarURL string
	RoomName                          string
}

// Presence says whether users see who is online.
type Presence struct {
	Enabled bool
}

// Limits bound what one request may bring.
type Limits struct {
	RequestBody int64 // bytes
}

// Appservices are the bridges and bots this server works with.
type Appservices struct {
	Files []string // registration files, YAML
}

// Logging says what is logged and how.
type Logging struct {
	Level  string
	Format string
}

// Metrics is the listener for Prometheus.
type Metrics struct {
	Address string // empty: off
}
