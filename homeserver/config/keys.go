package config

import (
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/mail"
	"net/url"
	"path"
	"regexp"
	"strconv"
	"time"

	"github.com/myelin-im/myelin/internal/ratelimit"
	"github.com/myelin-im/myelin/roomserver/pdu"
)

// A section is a top-level key of the configuration file.
type section struct {
	name string
	doc  string
	keys []key
}

// A key is one setting: the only place where its name, default, bounds and explanation are written.
type key struct {
	name    string
	initial string // the default, as it would be written in the file
	secret  bool   // never printed
	doc     string // what it does; after a blank line: when to change it
	value   value
}

// sections is the table of all settings of c. Its order is the order of the sample and the documentation.
func sections(c *Config) []section {
	return []section{
		{"server", "Who this server is.", []key{
			{"name", "localhost", false, `
				The domain in the identifiers this server makes, as in @alice:example.org; a port may follow.

				Set it before the first user registers: it is part of every identifier and can never be changed. A server
				does not start on data that belongs to another name.`,
				text(&c.Server.Name, "a host name, IPv4 address or IPv6 address in brackets, with an optional port", checkServerName)},
			{"data_dir", "./data", false, `
				The folder for everything durable: signing key, embedded database, media. It is made if it is missing.

				Set it to a folder that is backed up. Relative paths start at the working directory.`,
				text(&c.Server.DataDir, "a path", checkNotEmpty)},
			{"client_url", "", false, `
				The base URL at which clients reach this server, told to them at /.well-known/matrix/client.

				Set it when users type only the server name into their client and the client API is served under another
				name or port.`,
				optional(&c.Server.ClientURL, "an http or https URL", checkHTTPURL)},
			{"support_email", "", false, `
				An address for questions and complaints about this server, told to everyone at
				/.well-known/matrix/support.`,
				optional(&c.Server.SupportEmail, "an e-mail address", checkEmail)},
			{"support_page", "", false, `
				A page about this server and how to get help, told to everyone at /.well-known/matrix/support.`,
				optional(&c.Server.SupportPage, "an http or https URL", checkHTTPURL)},
			{"policy_server_key", "", false, `
				The ed25519 public key of a policy server that answers for server.name, in unpadded base64, told to everyone at
				/.well-known/matrix/policy_server.

				Set it if such a server runs beside this one.`,
				optional(&c.Server.PolicyKey, "a public key in unpadded base64", checkPublicKey)},
		}},
		{"client", "The listener for clients.", []key{
			{"address", "127.0.0.1:8008", false, `
				Where to listen for clients, as host:port; an empty host means every interface.

				Leave it on loopback behind a reverse proxy on the same machine.`,
				text(&c.Client.Address, "host:port", checkAddress)},
			{"tls_cert", "", false, `
				Certificate chain for the client listener, a PEM file. Without it, the listener speaks plain HTTP.

				Set it, with tls_key, when no reverse proxy in front of this server does TLS.`,
				optional(&c.Client.TLSCert, "a path", nil)},
			{"tls_key", "", false, `
				Private key of tls_cert, a PEM file.`,
				optional(&c.Client.TLSKey, "a path", nil)},
			{"trusted_proxies", "127.0.0.0/8, ::1", false, `
				The reverse proxies whose X-Forwarded-For tells from which address a client comes; that address is what
				limits of logins and registrations count. In the environment, they are separated by commas.

				Set it when the reverse proxy runs on another machine.`,
				networks(&c.Client.TrustedProxies)},
		}},
		{"federation", "The listener for other servers, and how this server reaches them.", []key{
			{"address", "", false, `
				Where to listen for other servers, as host:port, usually :8448. Empty: no listener of its own; the client
				listener answers other servers too.

				Set it when other servers connect directly instead of through a reverse proxy.`,
				optional(&c.Federation.Address, "host:port", checkAddress)},
			{"tls_cert", "", false, `
				Certificate chain for the federation listener, a PEM file. It must be valid for server.name.

				Servers speak only TLS to each other: leave it empty only if something in front of this listener does TLS.`,
				optional(&c.Federation.TLSCert, "a path", nil)},
			{"tls_key", "", false, `
				Private key of tls_cert, a PEM file.`,
				optional(&c.Federation.TLSKey, "a path", nil)},
			{"public_address", "", false, `
				Where other servers reach this one, as host:port, told to them at https://<server.name>/.well-known/matrix/server.

				Set it when server.name is the name of a web site, and this server is at another name or port.`,
				optional(&c.Federation.PublicAddress, "a server name, usually with a port", checkServerName)},
			{"ca_cert", "", false, `
				Certificates of authorities to trust beside the system's when connecting to other servers, a PEM file.

				Set it in closed networks with an authority of their own.`,
				optional(&c.Federation.CACert, "a path", nil)},
			{"allow_private_addresses", "false", false, `
				Whether to connect to other servers on loopback, link-local and private addresses. Refusing them keeps
				strangers from using this server to reach machines behind its firewall.

				Set it to true only in closed networks and tests.`,
				truth(&c.Federation.AllowPrivateAddresses)},
			{"allow", "", false, `
				The only servers to talk to, in both directions. In a name, * stands for any characters and ? for one; without a
				port, it means the host with any port. Empty: all servers.

				Set it in closed networks.`,
				patterns(&c.Federation.Allow)},
			{"deny", "", false, `
				Servers never to talk to, in either direction, written as in allow, and stronger than that.

				Set it against servers from which nothing but abuse comes. Their users' old events stay in the rooms.`,
				patterns(&c.Federation.Deny)},
			{"trusted_key_servers", "matrix.org", false, `
				Servers that are asked for the signing keys of others that do not answer themselves, in this order. Without
				any, events of servers that are gone cannot be checked, and rooms that hold such events may be wrong or
				impossible to join.

				Set it to other servers if you trust them more.`,
				serverNames(&c.Federation.TrustedKeyServers)},
			{"undelivered_messages", "30d", false, `
				How long messages to devices, with the keys of encrypted rooms in them, wait for a server that does not take
				them. What waits is bounded in number as well. 0s: forever.

				Lower it to free space sooner when many servers that are gone are in your users' rooms.`,
				duration(&c.Federation.UndeliveredMessages, 0, 36500*day)},
		}},
		{"database", "Where durable data lives.", []key{
			{"url", "", true, `
				A PostgreSQL database, as postgres://user:password@host/name. Empty: an embedded SQLite database in
				server.data_dir.

				Set it when PostgreSQL is run and backed up anyway. Data is not moved from one database to the other.
				A second server on the same database does not start. A connection pooler between the two must keep a
				session for each connection (PgBouncer: pool_mode = session, ignore_startup_parameters =
				extra_float_digits); with another the server does not start.`,
				optional(&c.Database.URL, "a postgres URL", checkDatabaseURL)},
			{"readers", "0", false, `
				Connections used for reading at the same time; writing has its own. 0: a number that suits the machine.

				Raise it if PostgreSQL runs on another machine and requests wait for a connection; lower it if PostgreSQL
				grants this server fewer.`,
				number(&c.Database.Readers, 0, 500)},
		}},
		{"registration", "Who may make an account.", []key{
			{"open", "false", false, `
				Whether strangers may register. While it is false, accounts are made by administrators, with the shared
				secret, or with the one-time token that an empty server prints at its start.

				Set it to true for a public server, best together with require_token or terms.`,
				truth(&c.Registration.Open)},
			{"require_token", "false", false, `
				Whether open registration asks for a registration token: myelin user invite makes one.

				Set it to true to let people in by invitation.`,
				truth(&c.Registration.RequireToken)},
			{"shared_secret", "", true, `
				A secret that lets a tool which knows it make accounts, administrators included, at
				/_synapse/admin/v1/register. Empty: the endpoint is off.

				Set it to a long random string if an account tool or a bridge asks for one.`,
				optional(&c.Registration.SharedSecret, "any text", nil)},
			{"guests", "false", false, `
				Whether guest accounts, without a password and with few rights, can be made.

				Set it to true if people should look into public rooms before they register.`,
				truth(&c.Registration.Guests)},
			{"require_email", "false", false, `
				Whether open registration asks for an e-mail address and has it confirmed. It needs email.smtp.

				Set it to true to make it harder to register in bulk, and to let everyone reset their password.`,
				truth(&c.Registration.RequireEmail)},
			{"terms_url", "", false, `
				The address of terms that everyone must accept to register. Empty: there are none.`,
				optional(&c.Registration.TermsURL, "an http or https URL", checkHTTPURL)},
			{"terms_name", "Terms of service", false, `
				The title under which clients show the terms.`,
				text(&c.Registration.TermsName, "any text but none", checkNotEmpty)},
			{"terms_version", "1.0", false, `
				The version of the terms.

				Change it when the terms change.`,
				text(&c.Registration.TermsVersion, "letters, digits, dots, dashes and underscores", checkVersion)},
		}},
		{"sessions", "Logins.", []key{
			{"access_token_lifetime", "5m", false, `
				How long an access token is valid in sessions whose client can refresh it. Other sessions' tokens are valid
				until logout.

				Raise it if refreshing makes noticeable load; a stolen token works that much longer.`,
				duration(&c.Sessions.AccessTokenLifetime, 10*time.Second, 30*day)},
		}},
		{"email", "E-mail, with which users confirm their addresses and reset their passwords.", []key{
			{"smtp", "", false, `
				The server that takes e-mail for delivery, as host:port. Empty: this server sends none, and e-mail addresses
				cannot be added to accounts.

				Set it to let users reset forgotten passwords.`,
				optional(&c.Email.SMTP, "host:port", checkAddress)},
			{"tls", "starttls", false, `
				How the connection to that server is secured: starttls asks for it on a plain connection, usually port 587;
				tls begins with it, usually port 465; none is for a mail server on the same machine.`,
				choice(&c.Email.TLS, "starttls", "tls", "none")},
			{"user", "", false, `
				The user name with which to log in to that server. Empty: without logging in.`,
				optional(&c.Email.User, "any text", nil)},
			{"password", "", true, `
				The password of that user.`,
				optional(&c.Email.Password, "any text", nil)},
			{"from", "", false, `
				The sender of all e-mail, for example Example <noreply@example.org>. It must be set if smtp is.`,
				optional(&c.Email.From, "an e-mail address, with a name if wanted", checkMailbox)},
			{"app_name", "Matrix", false, `
				What e-mails call the service.

				Set it to the name under which your users know it.`,
				text(&c.Email.AppName, "any text but none", checkNotEmpty)},
			{"unread_after", "10m", false, `
				After which time without reading users get e-mail about unread messages, if they ask for it. The pauses between
				such e-mails double, up to a day, until they come to read.`,
				duration(&c.Email.UnreadAfter, time.Millisecond, 24*time.Hour)},
			{"templates", "", false, `
				A folder with templates that replace the built-in e-mails and pages; what is not in it stays as built in.
				docs/email.md lists them.`,
				optional(&c.Email.Templates, "a path", nil)},
		}},
		{"passwords", "Passwords, and the cost of their hashes (argon2id). A changed cost reaches an account when it next logs in.", []key{
			{"min_length", "1", false, `
				The least number of characters of a new password, whoever sets it. Passwords that are set already stay valid.

				Raise it to keep people from choosing passwords that are guessed soon.`,
				number(&c.Passwords.MinLength, 1, 26)},
			{"memory", "19MiB", false, `
				Memory for one hash.

				Raise it on a machine with memory to spare: guessing stolen hashes gets as much dearer as logging in.`,
				size(&c.Passwords.Memory, 8<<10, 4<<30)},
			{"iterations", "2", false, `
				Passes over that memory for one hash.`,
				number(&c.Passwords.Iterations, 1, 100)},
			{"parallel", "0", false, `
				How many hashes are computed at the same time; further logins wait. 0: as many as there are processors.

				Lower it if many logins at once slow everything else down.`,
				number(&c.Passwords.Parallel, 0, 1024)},
		}},
		{"rooms", "What rooms are like.", []key{
			{"default_version", pdu.DefaultVersion, false, `
				The room version of new rooms whose creator does not ask for one. Existing rooms stay as they are.

				Set it to an older one if people on older servers cannot join new rooms, or if their clients do not know yet that
				the creators of a room of version 12 may do everything there and hide what creators could change.`,
				text(&c.Rooms.DefaultVersion, "a room version that this server supports", checkRoomVersion)},
		}},
		{"retention", "How long messages and rooms are kept. State events, such as names and memberships, stay as long as the room.", []key{
			{"enabled", "true", false, `
				Whether messages expire: by what a room says in m.room.retention, else after default_lifetime. Expired
				messages are shown to nobody, and then deleted; that cannot be undone.

				Set it to false to keep everything, whatever rooms say.`,
				truth(&c.Retention.Enabled)},
			{"default_lifetime", "0s", false, `
				How long messages live in rooms that say nothing of it. 0s: forever.

				Set it where the law or the disk wants old messages gone.`,
				duration(&c.Retention.Default, 0, 36500*day)},
			{"shortest_lifetime", "0s", false, `
				The shortest lifetime that a room can set; a shorter one counts as this. 0s: none.

				Set it if people should have their messages for some time, whatever a room's administrators want.`,
				duration(&c.Retention.AtLeast, 0, 36500*day)},
			{"longest_lifetime", "0s", false, `
				The longest lifetime of messages, whatever a room says. 0s: none.

				Set it if no message may be kept longer, in any room.`,
				duration(&c.Retention.AtMost, 0, 36500*day)},
			{"purge_interval", "1h", false, `
				How often expired messages, and what nothing refers to any more, are deleted from the database.`,
				duration(&c.Retention.PurgeInterval, time.Second, 30*day)},
			{"abandoned_rooms", "7d", false, `
				How long after the last local user has forgotten a room it is deleted, with all of its history. 0s: never.

				Lower it to free space sooner.`,
				duration(&c.Retention.AbandonedRooms, 0, 36500*day)},
		}},
		{"delayed_events", "Events that clients ask to be sent later. Calls need them to notice who is gone.", []key{
			{"max_delay", "24h", false, `
				The longest delay.`,
				duration(&c.DelayedEvents.MaxDelay, time.Minute, 365*day)},
			{"max_scheduled", "100", false, `
				How many events of one user may wait at a time. 0: there are no delayed events, and who leaves a call
				without saying so stays in it for hours.

				Raise it if bots plan reminders.`,
				number(&c.DelayedEvents.MaxScheduled, 0, 100_000)},
		}},
		{"push", "Push notifications.", []key{
			{"allow_private_addresses", "false", false, `
				Whether users' clients may name push gateways in private networks and on this machine, also such that speak
				plain HTTP.

				Set it to true when a gateway of your own (ntfy, for example) runs in your network, and users are trusted not
				to make this server send requests there for other ends.`,
				truth(&c.Push.AllowPrivateAddresses)},
			{"contact", "", false, `
				Where push services of browsers may reach you if something goes wrong, as a URL (mailto: or https:).`,
				optional(&c.Push.Contact, "a mailto: or https: URL", checkContact)},
			{"web_push_apps", "", false, `
				The app_ids of web apps whose notifications the push gateway in this server takes from any homeserver, at
				/_matrix/push/v1/notify. In the environment, they are separated by commas; * is a wildcard.

				Set it if a web app of yours uses this server as its gateway. Pushers of kind webpush need no entry.`,
				list(&c.Push.WebPushApps, "app_ids, in which * is a wildcard", ",", checkPattern, func(s string) string { return s })},
			{"apns_app_id", "", false, `
				The app_id of your app on Apple's devices. Empty: the push gateway in this server serves none.

				Set it, and the other apns settings, if you publish an app of your own. docs/push.md says how.`,
				optional(&c.Push.APNs.AppID, "an app_id", nil)},
			{"apns_topic", "", false, `
				The bundle id of that app.`,
				optional(&c.Push.APNs.Topic, "a bundle id", nil)},
			{"apns_key", "", false, `
				The signing key for APNs, the .p8 file that Apple hands out.`,
				optional(&c.Push.APNs.Key, "a path", nil)},
			{"apns_key_id", "", false, `
				The name of that key at Apple.`,
				optional(&c.Push.APNs.KeyID, "a key id", nil)},
			{"apns_team_id", "", false, `
				The name of your team at Apple.`,
				optional(&c.Push.APNs.TeamID, "a team id", nil)},
			{"apns_sandbox", "false", false, `
				Whether to use Apple's service for apps in development.`,
				truth(&c.Push.APNs.Sandbox)},
			{"fcm_app_id", "", false, `
				The app_id of your app on devices with Google's services. Empty: the push gateway in this server serves none.`,
				optional(&c.Push.FCM.AppID, "an app_id", nil)},
			{"fcm_service_account", "", false, `
				The key of a service account that may send by FCM, the JSON file that Google hands out.`,
				optional(&c.Push.FCM.ServiceAccount, "a path", nil)},
		}},
		{"notices", "What the server itself tells its users, each in a room of their own.", []key{
			{"user", "_server", false, `
				The localpart of the user as whom the server speaks. It must not belong to anybody.

				Change it only before the first notice is sent: the rooms of before would be left behind.`,
				text(&c.Notices.Localpart, "a-z, 0-9 and . _ = - / +", checkLocalpart)},
			{"display_name", "Server notices", false, `
				The display name of that user.`,
				optional(&c.Notices.DisplayName, "any text", nil)},
			{"avatar_url", "", false, `
				The avatar of that user, an mxc:// URI.`,
				optional(&c.Notices.AvatarURL, "an mxc URI", checkMXC)},
			{"room_name", "Server notices", false, `
				The name of the rooms.`,
				text(&c.Notices.RoomName, "any text but none", checkNotEmpty)},
		}},
		{"presence", "Who is online.", []key{
			{"enabled", "true", false, `
				Whether users see who is online.

				Set it to false to save the traffic on large servers.`,
				truth(&c.Presence.Enabled)},
		}},
		{"media", mediaDoc, mediaKeys(&c.Media)},
		{"thumbnails", "Small pictures of large ones.", thumbnailKeys(&c.Media.Thumbnails)},
		{"url_previews", "What clients show of links in messages.", previewKeys(&c.Media.Previews)},
		{"media_s3", "A bucket for media, on any server that speaks the S3 protocol.", s3Keys(&c.Media.S3)},
		{"limits", "What one request may bring.", []key{
			{"request_body", "1MiB", false, `
				The largest body of a request that is not an upload. Events have a smaller limit of their own, set by the
				Matrix specification.

				Raise it only if a client's request is refused with M_TOO_LARGE.`,
				size(&c.Limits.RequestBody, 64<<10, 64<<20)},
		}},
		{"rate_limits", rateLimitsDoc, rateLimits(&c.RateLimits)},
		{"appservices", "Bridges and bots.", []key{
			{"files", "", false, `
				Registration files of application services, YAML as the Matrix specification has it. In the environment,
				their paths are separated by colons or commas.`,
				files(&c.Appservices.Files)},
		}},
		{"logging", "What is logged, to standard error.", []key{
			{"level", "info", false, `
				The least important messages that are logged.

				Set it to debug to follow single requests and events.`,
				choice(&c.Logging.Level, "error", "warn", "info", "debug")},
			{"format", "text", false, `
				Lines for people, or one JSON object a line.

				Set it to json if logs are collected by a tool.`,
				choice(&c.Logging.Format, "text", "json")},
		}},
		{"metrics", "Figures for Prometheus.", []key{
			{"address", "", false, `
				Where to serve /metrics and, for developers, /debug/pprof/, as host:port, with plain HTTP and without
				authentication. Empty: nowhere.

				Set it to an address that only the collecting machine can reach.`,
				optional(&c.Metrics.Address, "host:port", checkAddress)},
		}},
	}
}

const rateLimitsDoc = "How often one caller may do something: so many times per second (/s), minute (/m) or hour (/h) in the long " +
	"run, and a burst at once. A caller is a user, another server, or an address where nobody has logged in yet. Raise a " +
	"limit if people who do nothing unusual are told to wait; \"off\" lifts it."

// rateLimits are the settings of a limiter: two switches and the budget of every class of endpoints.
func rateLimits(c *ratelimit.Config) []key {
	initial := ratelimit.DefaultConfig()
	keys := []key{
		{"enabled", strconv.FormatBool(initial.Enabled), false, `
			Whether callers that ask too often are told to wait.

			Set it to false only for tests and load measurements.`,
			truth(&c.Enabled)},
		{"exempt_admins", strconv.FormatBool(initial.ExemptAdmins), false, `
			Whether administrators may do as much as they like.

			Set it to false if scripts of administrators make too much load.`,
			truth(&c.ExemptAdmins)},
	}
	for _, class := range []struct {
		name         string
		field, start *ratelimit.Rate
		doc          string
	}{
		{"message", &c.Message, &initial.Message, "Sending events: messages, redactions, reactions."},
		{"state", &c.State, &initial.State, "Changing a room's state, aliases and directory entry."},
		{"create", &c.Create, &initial.Create, "Creating and upgrading rooms."},
		{"join", &c.Join, &initial.Join, "Joining, knocking on and leaving rooms."},
		{"invite", &c.Invite, &initial.Invite, "Inviting people."},
		{"login", &c.Login, &initial.Login, "Logging in, by address; changing a password and ending an account."},
		{"login_account", &c.LoginAccount, &initial.LoginAccount, "Password attempts on one account, from wherever they come."},
		{"mail", &c.Mail, &initial.Mail, "E-mails to one address, whoever asks for them."},
		{"register", &c.Register, &initial.Register, "Making accounts and asking whether a user name is free, by address."},
		{"account", &c.Account, &initial.Account, "Changing one's own account: profile, devices, account data, filters; and refreshing tokens, by address."},
		{"media", &c.Media, &initial.Media, "Uploads, downloads and previews."},
		{"read", &c.Read, &initial.Read, "Reading anything that has no limit of its own."},
		{"search", &c.Search, &initial.Search, "Searching messages, people and room hierarchies."},
		{"sync", &c.Sync, &initial.Sync, "Syncing."},
		{"ephemeral", &c.Ephemeral, &initial.Ephemeral, "Typing notices, receipts and presence."},
		{"keys", &c.Keys, &initial.Keys, "Encryption keys and their backup."},
		{"to_device", &c.ToDevice, &initial.ToDevice, "Messages to devices."},
		{"delayed", &c.Delayed, &initial.Delayed, "Delayed events. Every member of a call restarts one each second."},
		{"federation", &c.Federation, &initial.Federation, "Requests of another server."},
		{"admin", &c.Admin, &initial.Admin, "Administration."},
	} {
		keys = append(keys, key{class.name, formatRate(*class.start), false, class.doc, rate(class.field)})
	}
	return keys
}

func checkNotEmpty(s string) error {
	if s == "" {
		return errors.New("it is empty")
	}
	return nil
}

// serverName follows the grammar of the specification's appendices, "Server name".
var serverName = regexp.MustCompile(`^([0-9A-Za-z.-]+|\[[0-9A-Fa-f:.]{2,45}\])(:[0-9]{1,5})?$`)

// maxServerName bounds a server name, in characters, as the specification does.
const maxServerName = 255

func checkServerName(s string) error {
	if len(s) > maxServerName || !serverName.MatchString(s) {
		return fmt.Errorf("%q is not a server name", s)
	}
	return nil
}

func checkAddress(s string) error {
	_, port, err := net.SplitHostPort(s)
	if err != nil {
		return fmt.Errorf("%q is not host:port", s)
	}
	if n, err := strconv.Atoi(port); err != nil || n < 0 || n > 65535 {
		return fmt.Errorf("%q is not a port", port)
	}
	return nil
}

func checkHTTPURL(s string) error {
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return fmt.Errorf("%q is not such a URL", s)
	}
	return nil
}

// checkDatabaseURL does not repeat the URL, which may hold a password.
func checkDatabaseURL(s string) error {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "postgres" && u.Scheme != "postgresql" {
		return errors.New("it does not start with postgres:// or is malformed")
	}
	return nil
}

func checkEmail(s string) error {
	if address, err := mail.ParseAddress(s); err != nil || address.Address != s {
		return fmt.Errorf("%q is none", s)
	}
	return nil
}

func checkRoomVersion(s string) error {
	if _, ok := pdu.Lookup(s); !ok {
		return fmt.Errorf("room version %q is unknown", s)
	}
	return nil
}

var localpart = regexp.MustCompile(`^[a-z0-9._=/+-]+$`)

func checkLocalpart(s string) error {
	if len(s) > 200 || !localpart.MatchString(s) {
		return fmt.Errorf("%q is not the localpart of a user", s)
	}
	return nil
}

func checkMXC(s string) error {
	if u, err := url.Parse(s); err != nil || u.Scheme != "mxc" || u.Host == "" || len(u.Path) < 2 {
		return fmt.Errorf("%q is none", s)
	}
	return nil
}

func checkPublicKey(s string) error {
	if key, err := base64.RawStdEncoding.DecodeString(s); err != nil || len(key) != ed25519.PublicKeySize {
		return fmt.Errorf("%q is none", s)
	}
	return nil
}

func checkContact(s string) error {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "mailto" && u.Scheme != "https" {
		return errors.New("it is neither a mailto: nor an https: URL")
	}
	return nil
}

func checkPattern(s string) (string, error) {
	if _, err := path.Match(s, ""); err != nil || s == "" {
		return "", errors.New("it is not a pattern")
	}
	return s, nil
}

func checkMailbox(s string) error {
	if _, err := mail.ParseAddress(s); err != nil {
		return fmt.Errorf("%q is none", s)
	}
	return nil
}

var version = regexp.MustCompile(`^[0-9A-Za-z._-]+$`)

func checkVersion(s string) error {
	if len(s) > 64 || !version.MatchString(s) {
		return fmt.Errorf("%q has other characters or is longer than 64", s)
	}
	return nil
}
