package config

import (
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/myelin-im/myelin/internal/ratelimit"
)

var update = flag.Bool("update", false, "write docs/configuration.md anew")

const documentation = "../../docs/configuration.md"

func TestDocumentationIsCurrent(t *testing.T) {
	if *update {
		if err := os.WriteFile(documentation, []byte(Markdown()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(documentation)
	if err != nil || string(have) != Markdown() {
		t.Errorf("docs/configuration.md is not what keys.go says (%v): run make docs", err)
	}
}

func write(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "myelin.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestDefaults(t *testing.T) {
	c, err := Load("", nil)
	if err != nil {
		t.Fatal(err)
	}
	if c.Server.Name != "localhost" || c.Server.DataDir != "./data" || c.Client.Address != "127.0.0.1:8008" {
		t.Errorf("a server without configuration would be %+v at %+v", c.Server, c.Client)
	}
	if c.Federation.Address != "" || c.Registration.Open || c.Registration.Guests || c.Federation.AllowPrivateAddresses {
		t.Error("something that strangers could use is on by default")
	}
	if c.RateLimits != ratelimit.DefaultConfig() || !c.RateLimits.Enabled || !c.Presence.Enabled {
		t.Error("rate limits or presence are off by default or changed on the way")
	}
	for _, text := range []string{"", "# nothing\n", "server:\n", "server:\n  name:\n"} {
		if same, err := Load(write(t, text), nil); err != nil || !reflect.DeepEqual(same, c) {
			t.Errorf("%q is not the same as no configuration: %v", text, err)
		}
	}
}

func TestFileAndEnvironment(t *testing.T) {
	registration := write(t, "id: bridge\n")
	c, err := Load(write(t, `
server: {name: "example.org:8448", data_dir: /srv/myelin}
client:
  address: "[::1]:8008"
registration:
  open: true
  require_token: &yes true
  guests: *yes
sessions: {access_token_lifetime: 7d}
passwords: {memory: 64 MiB}
presence: {enabled: false}
appservices:
  files: [`+registration+`]
logging: {level: warn}
`), []string{
		"MYELIN_CLIENT_ADDRESS=:80", "MYELIN_DATABASE_URL=postgres://me:secret@db/myelin", "MYELIN_LOGGING_FORMAT=json",
		"MYELIN_LOGGING_LEVEL=", "MYELIN_BIN=/bin/myelin",
	})
	if err != nil {
		t.Fatal(err)
	}
	want := Default()
	want.Server = Server{Name: "example.org:8448", DataDir: "/srv/myelin"}
	want.Client.Address = ":80"
	want.Database.URL = "postgres://me:secret@db/myelin"
	want.Registration.Open, want.Registration.RequireToken, want.Registration.Guests = true, true, true
	want.Sessions.AccessTokenLifetime = 7 * 24 * time.Hour
	want.Passwords.Memory = 64 << 20
	want.Presence.Enabled = false
	want.Appservices.Files = []string{registration}
	want.Logging = Logging{Level: "warn", Format: "json"}
	want.Strangers = []string{"MYELIN_BIN"}
	want.source = c.source
	if !reflect.DeepEqual(c, want) {
		t.Errorf("read  %+v\nwanted %+v", c, want)
	}
}

// TestStrangers: a variable of the environment that names no section is let pass and noted.
func TestStrangers(t *testing.T) {
	c, err := Load("", []string{"MYELIN_SERVR_NAME=x", "MYELIN_CONFIG=x", "MYELIN_EMPTY=", "MYELIN_PORT=8008", "OTHER=x", "MYELIN_SERVER_NAME=a.b"})
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"MYELIN_PORT", "MYELIN_SERVR_NAME"}; !slices.Equal(c.Strangers, want) {
		t.Errorf("noted %q, want %q", c.Strangers, want)
	}
}

// TestKubernetesServices: what Kubernetes tells every container of its services is no setting, whatever a service is called.
func TestKubernetesServices(t *testing.T) {
	for _, service := range []string{"MYELIN", "MYELIN_CLIENT", "MYELIN_FEDERATION_TLS", "MYELIN_2_DATABASE"} {
		c, err := Load("", []string{
			service + "_SERVICE_HOST=10.96.0.7",
			service + "_SERVICE_PORT=8008",
			service + "_SERVICE_PORT_HTTP_API=8008",
			service + "_PORT=tcp://10.96.0.7:8008",
			service + "_PORT_8008_TCP=tcp://10.96.0.7:8008",
			service + "_PORT_8008_TCP_PROTO=tcp",
			service + "_PORT_8008_TCP_PORT=8008",
			service + "_PORT_8008_TCP_ADDR=10.96.0.7",
			service + "_PORT_53_UDP=udp://[fd00::7]:53",
			service + "_PORT_53_UDP_PROTO=udp",
			service + "_PORT_53_UDP_PORT=53",
			service + "_PORT_53_UDP_ADDR=fd00::7",
		})
		if err != nil {
			t.Errorf("%s: %v", service, err)
		} else if len(c.Strangers) > 0 {
			t.Errorf("%s: noted %q", service, c.Strangers)
		}
	}
	for _, mistake := range []string{
		"MYELIN_CLIENT_PORT=8008", "MYELIN_CLIENT_SERVICE_HOST=example.org", "MYELIN_CLIENT_SERVICE_PORT=http",
		"MYELIN_CLIENT_PORT_TCP=tcp://10.96.0.7:8008", "MYELIN_CLIENT_PORT_8008_TCP_NAME=x", "MYELIN_CLIENT_HOST=10.96.0.7",
	} {
		name, _, _ := strings.Cut(mistake, "=")
		if _, err := Load("", []string{mistake}); err == nil || !strings.Contains(err.Error(), name+": there is no such setting") {
			t.Errorf("%s: %v", mistake, err)
		}
	}
}

func TestListFromEnvironment(t *testing.T) {
	a, b, d := write(t, ""), write(t, ""), write(t, "")
	c, err := Load(write(t, "appservices: {files: ["+a+"]}"), []string{"MYELIN_APPSERVICES_FILES=" + a + ":" + b + "," + d})
	if err != nil || !slices.Equal(c.Appservices.Files, []string{a, b, d}) {
		t.Errorf("read %v, %v", c, err)
	}
	c, err = Load("", []string{"MYELIN_CLIENT_TRUSTED_PROXIES=fd00::/8, 192.0.2.1"})
	want := []netip.Prefix{netip.MustParsePrefix("fd00::/8"), netip.MustParsePrefix("192.0.2.1/32")}
	if err != nil || !slices.Equal(c.Client.TrustedProxies, want) {
		t.Errorf("read %v, %v", c, err)
	}
}

// TestPatternsOfServers: wildcards may stand for ports as well.
func TestPatternsOfServers(t *testing.T) {
	patterns := []string{"*", "*.example.org", "matrix?.example.org:*", "example.org:84??", "[2001:db8::*]:8448", "[*]"}
	c, err := Load("", []string{"MYELIN_FEDERATION_DENY=" + strings.Join(patterns, ",")})
	if err != nil || !slices.Equal(c.Federation.Deny, patterns) {
		t.Errorf("read %v, %v", c, err)
	}
}

// TestRefusals gives files and environments with one or several mistakes, and what must be said of each.
func TestRefusals(t *testing.T) {
	cert := write(t, "no certificate")
	for _, test := range []struct {
		name    string
		file    string
		environ []string
		want    []string // one part of each problem, in order
	}{
		{"unknown section", "serve:\n  name: a\n", nil, []string{"myelin.yaml:1: serve: unknown section; allowed: server, client,"}},
		{"unknown key", "server:\n  nam: a\n", nil, []string{"myelin.yaml:2: server.nam: unknown key; allowed in server: name, data_dir,"}},
		{"server name", "server:\n  name: https://a\n", nil, []string{`myelin.yaml:2: server.name: "https://a" is not a server name; allowed: a host name`}},
		{"empty server name", "server: {name: ''}", nil, []string{"server.name"}},
		{"truth", "registration:\n  open: yes\n", nil, []string{`registration.open: "yes" is neither; allowed: true, false`}},
		{"number", "database: {readers: many}", nil, []string{`"many" is not a whole number; allowed: a number from 0 to 500`}},
		{"number's range", "database: {readers: 501}", nil, []string{"501 is out of range"}},
		{"choice", "logging: {level: loud}", nil, []string{`"loud" is none of them; allowed: error, warn, info, debug`}},
		{"time without unit", "sessions: {access_token_lifetime: 300}", nil, []string{`"300" is not a time with a unit; allowed: a time from 10s to 30d`}},
		{"time's range", "sessions: {access_token_lifetime: 31d}", nil, []string{"31d is out of range"}},
		{"size without unit", "limits: {request_body: 100000}", nil, []string{`"100000" is not a size with a unit`}},
		{"size overflows", "limits: {request_body: 9999999999999GiB}", nil, []string{"is not a size"}},
		{"size's range", "limits: {request_body: 1KiB}", nil, []string{"1KiB is out of range; allowed: a size from 64KiB to 64MiB"}},
		{"port", "client: {address: '127.0.0.1:99999'}", nil, []string{`"99999" is not a port`}},
		{"no port", "client: {address: 127.0.0.1}", nil, []string{`"127.0.0.1" is not host:port`}},
		{"URL", "server: {client_url: example.org}", nil, []string{"is not such a URL; allowed: an http or https URL, or empty"}},
		{"rate", "rate_limits: {login: 5}", nil, []string{`rate_limits.login: "5" is not a rate and a burst; allowed: a rate and a burst such as`}},
		{"rate's unit", "rate_limits: {login: 5/d burst 3, read: 1/s burst 0, sync: -1/s burst 1}", nil, []string{"rate_limits.login", "rate_limits.read", "rate_limits.sync"}},
		{"networks", "client: {trusted_proxies: [10.0.0.0/8, proxy, 10.0.0.0/33]}", nil, []string{`client.trusted_proxies: "proxy" is neither, "10.0.0.0/33" is neither; allowed: IP addresses`}},
		{"e-mail address", "server: {support_email: Alice <a@b>}", nil, []string{`"Alice <a@b>" is none; allowed: an e-mail address, or empty`}},
		{"list for a value", "server:\n  name: [a]\n", nil, []string{"myelin.yaml:2: server.name: it must be one value"}},
		{"value for a list", "appservices: {files: a.yaml}", nil, []string{"it must be a list"}},
		{"mapping in a list", "appservices: {files: [{a: b}]}", nil, []string{"it must be a list"}},
		{"value for a section", "server: localhost", nil, []string{"myelin.yaml:1: server: it must hold keys with values"}},
		{"value for everything", "localhost", nil, []string{"myelin.yaml:1: the file must hold keys with values"}},
		{"key twice", "server:\n  name: a\n  name: b\n", nil, []string{"myelin.yaml:3: server.name: it is there already, in line 2"}},
		{"section twice", "server: {name: a}\nserver: {name: b}", nil, []string{"myelin.yaml:2: server: it is there already, in line 1"}},
		{"two documents", "server:\n  name: a\n---\nserver:\n  name: b\n", nil, []string{"myelin.yaml:3: the file must hold one document"}},
		{"not YAML", "server: [", nil, []string{"myelin.yaml: "}},
		{"missing registration", "appservices:\n  files: [/nowhere.yaml, /nor-here.yaml]\n", nil, []string{"myelin.yaml:2: appservices.files: /nowhere.yaml: no such file or directory, /nor-here.yaml: no such file"}},
		{"environment's value", "", []string{"MYELIN_DATABASE_READERS=x"}, []string{`MYELIN_DATABASE_READERS: database.readers: "x" is not a whole number; allowed: a number`}},
		{"environment's key", "", []string{"MYELIN_SERVER_NAM=x"}, []string{"MYELIN_SERVER_NAM: there is no such setting; allowed in server: name"}},
		{"certificate without key", "client:\n  tls_cert: a.pem\n", nil, []string{"myelin.yaml:2: client.tls_cert: client.tls_key is missing"}},
		{"key without certificate", "", []string{"MYELIN_FEDERATION_TLS_KEY=a.pem"}, []string{"MYELIN_FEDERATION_TLS_KEY: federation.tls_key: federation.tls_cert is missing"}},
		{"missing certificate", "client: {tls_cert: /nowhere.pem, tls_key: /nowhere.pem}", nil, []string{"client.tls_cert: open /nowhere.pem: no such file"}},
		{"authorities", "federation: {ca_cert: " + cert + "}", nil, []string{"federation.ca_cert: " + cert + " has no PEM certificates"}},
		{"bucket without a name", "media_s3:\n  endpoint: https://s3\n", nil, []string{"myelin.yaml:2: media_s3.endpoint: it needs media_s3.bucket"}},
		{"token for a closed door", "registration: {require_token: true}", nil, []string{"registration.require_token: it needs registration.open: true"}},
		{"database's password stays out", "database: {url: 'mysql://me:secret@db/x'}", nil, []string{"database.url: it does not start with postgres:// or is malformed"}},
		{"all at once", "server: {name: a b}\nlogin: {}\nlogging:\n  level: x\n  colour: y\n", []string{"MYELIN_CLIENT_ADDRESS=x"}, []string{
			"myelin.yaml:1: server.name", "myelin.yaml:2: login: unknown section", "myelin.yaml:4: logging.level", "myelin.yaml:5: logging.colour",
			"MYELIN_CLIENT_ADDRESS: client.address"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			c, err := Load(write(t, test.file), test.environ)
			problems, ok := err.(Problems)
			if c != nil || !ok || len(problems) != len(test.want) {
				t.Fatalf("%d problems expected, got %v, %v", len(test.want), c, err)
			}
			for i, want := range test.want {
				if got := problems[i].String(); !strings.Contains(got, want) {
					t.Errorf("said    %s\nwanted  %s", got, want)
				}
			}
			if strings.Contains(err.Error(), "secret@") {
				t.Errorf("the password is in the message: %s", err)
			}
		})
	}
	folder := t.TempDir()
	for file, want := range map[string]string{filepath.Join(folder, "none.yaml"): "no such file", folder: "is a directory"} {
		if _, err := Load(file, nil); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "allowed: a YAML file that this user can read") {
			t.Errorf("%s: %v", file, err)
		}
	}
}

// TestPrintedFileIsTheConfiguration reads back what is printed.
func TestPrintedFileIsTheConfiguration(t *testing.T) {
	registration := write(t, "")
	given := Default()
	given.Server.Name = "[::1]:8448"
	given.Client.Address = ":80"
	given.Client.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("::1/128"), netip.MustParsePrefix("10.0.0.0/8")}
	given.Registration = Registration{Open: true, TermsURL: "https://a/?b=c#d", TermsName: "Yes, \"no\": true\\ #1", TermsVersion: "2"}
	given.Passwords.Parallel = 3
	given.Appservices.Files = []string{registration, registration}
	given.Logging.Level = "debug"
	given.RateLimits.Login, given.RateLimits.Sync = ratelimit.Rate{}, ratelimit.Rate{PerSecond: 0.5 / 3600, Burst: 7}
	for name, c := range map[string]*Config{"defaults": Default(), "given": given} {
		back, err := Load(write(t, c.YAML()), nil)
		if err == nil {
			back.source = c.source
		}
		if err != nil || !reflect.DeepEqual(c, back) {
			t.Errorf("%s: %v\nprinted %+v\nread    %+v", name, err, c, back)
		}
	}
}

func TestSecretsAreNotPrinted(t *testing.T) {
	c := Default()
	c.Database.URL, c.Registration.SharedSecret = "postgres://a:hush@b/c", "hush"
	if printed := c.YAML(); strings.Contains(printed, "hush") || strings.Count(printed, "is set, but not shown") != 2 {
		t.Error(printed)
	}
}

// TestPrintedDefaultsCanBeUncommented makes sure that the sample's comments are the lines one would write.
func TestPrintedDefaultsCanBeUncommented(t *testing.T) {
	var lines []string
	for line := range strings.Lines(Default().YAML()) {
		if key, ok := strings.CutPrefix(line, "  #"); ok && !strings.HasPrefix(key, " ") {
			line = "  " + key
		}
		lines = append(lines, line)
	}
	c, err := Load(write(t, strings.Join(lines, "")), nil)
	if err != nil {
		t.Fatal(err)
	}
	c.source = Default().source
	if !reflect.DeepEqual(c, Default()) {
		t.Errorf("read %+v", c)
	}
}

func TestDurationsAndSizesReadBack(t *testing.T) {
	for _, d := range []time.Duration{0, time.Millisecond, 90 * time.Second, time.Minute, time.Hour, 90 * time.Minute, day, 36 * time.Hour, 7 * day} {
		if back, err := parseDuration(formatDuration(d)); err != nil || back != d {
			t.Errorf("%v is written %s and read %v, %v", d, formatDuration(d), back, err)
		}
	}
	for _, n := range []int64{0, 1, 1000, 1024, 1536, 1 << 20, 19 << 20, 3 << 30} {
		if back, err := parseSize(formatSize(n)); err != nil || back != n {
			t.Errorf("%d is written %s and read %d, %v", n, formatSize(n), back, err)
		}
	}
}

func TestEveryVariableNamesOneSetting(t *testing.T) {
	seen := map[string]bool{}
	for _, s := range sections(Default()) {
		for _, k := range s.keys {
			name := variable(s.name, k.name)
			if seen[name] {
				t.Errorf("%s names two settings", name)
			}
			seen[name] = true
			if strings.TrimSpace(k.doc) == "" || k.value.allowed == "" {
				t.Errorf("%s.%s is not explained", s.name, k.name)
			}
		}
	}
}
