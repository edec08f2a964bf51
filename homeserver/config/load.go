package config

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"
)

// A Problem is one thing that is wrong with a configuration.
type Problem struct {
	Where string // "file:line", the name of a variable of the environment, or empty
	Key   string // "section.key", or empty if the file as a whole is wrong
	Text  string // what is wrong and what is allowed
}

func (p Problem) String() string {
	parts := []string{p.Where, p.Key, p.Text}
	return strings.Join(slices.DeleteFunc(parts, func(s string) bool { return s == "" }), ": ")
}

// Problems is everything that is wrong with a configuration. It is the error of Load.
type Problems []Problem

// Error has one problem a line.
func (p Problems) Error() string {
	lines := make([]string, len(p))
	for i := range p {
		lines[i] = p[i].String()
	}
	return strings.Join(lines, "\n")
}

// Default is the configuration of a server that was told nothing.
func Default() *Config {
	return newLoader().config
}

// Load reads the configuration: defaults, over them the YAML file (none if file is empty), over it the variables of
// environ ("NAME=value", as os.Environ gives them) named MYELIN_SECTION_KEY. Empty variables count as absent. If
// anything is wrong, the error is a Problems that lists all of it, in the order of the file.
func Load(file string, environ []string) (*Config, error) {
	l := newLoader()
	if file != "" {
		l.readFile(file)
	}
	l.readEnvironment(environ)
	l.checkTogether()
	if len(l.problems) > 0 {
		return nil, l.problems
	}
	return l.config, nil
}

// loader fills a Config and remembers where each setting came from.
type loader struct {
	config   *Config
	sections []section
	source   map[string]string // "section.key" to Problem.Where, for settings that are not defaults
	problems Problems
}

func newLoader() *loader {
	source := map[string]string{}
	l := &loader{config: &Config{source: source}, source: source}
	l.sections = sections(l.config)
	for _, s := range l.sections {
		for _, k := range s.keys {
			if err := k.value.set(k.value.split(k.initial)); err != nil {
				panic("config: default of " + s.name + "." + k.name + ": " + err.Error()) // a mistake in keys.go
			}
		}
	}
	return l
}

func (l *loader) add(where, key, format string, args ...any) {
	l.problems = append(l.problems, Problem{where, key, fmt.Sprintf(format, args...)})
}

// set gives a key its items, or notes why it cannot.
func (l *loader) set(where, path string, k *key, items []string) {
	l.source[path] = where
	if err := k.value.set(items); err != nil {
		l.add(where, path, "%s; allowed: %s", strings.ReplaceAll(err.Error(), "\n", ", "), k.value.allowed)
	}
}

func (l *loader) readFile(file string) {
	data, err := os.ReadFile(file) // #nosec G304: the operator names the file
	if err != nil {
		l.add("", "", "read the configuration: %v; allowed: a YAML file that this user can read", err)
		return
	}
	var document, second yaml.Node
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	if err := decoder.Decode(&document); err != nil && !errors.Is(err, io.EOF) {
		l.add(file, "", "%s", strings.TrimPrefix(err.Error(), "yaml: "))
		return
	}
	if decoder.Decode(&second) == nil {
		l.add(position(file, &second), "", "the file must hold one document, and a second begins here")
	}
	if len(document.Content) == 0 { // nothing but comments
		return
	}
	l.eachPair(file, "", document.Content[0], func(where, name string, node *yaml.Node) {
		i := slices.IndexFunc(l.sections, func(s section) bool { return s.name == name })
		if i < 0 {
			l.add(where, name, "unknown section; allowed: %s", strings.Join(l.names(), ", "))
			return
		}
		l.readSection(file, &l.sections[i], node)
	})
}

func (l *loader) readSection(file string, s *section, node *yaml.Node) {
	l.eachPair(file, s.name, node, func(where, name string, node *yaml.Node) {
		path := s.name + "." + name
		i := slices.IndexFunc(s.keys, func(k key) bool { return k.name == name })
		if i < 0 {
			l.add(where, path, "unknown key; allowed in %s: %s", s.name, strings.Join(s.names(), ", "))
			return
		}
		k := &s.keys[i]
		list := k.value.separators != ""
		if items, ok := itemsOf(node, list); !ok {
			shape := "one value"
			if list {
				shape = "a list"
			}
			l.add(where, path, "it must be %s; allowed: %s", shape, k.value.allowed)
		} else if items != nil {
			l.set(where, path, k, items)
		}
	})
}

// eachPair calls fn with every key of a mapping once; an absent value counts as an empty mapping.
func (l *loader) eachPair(file, path string, node *yaml.Node, fn func(where, name string, value *yaml.Node)) {
	node = resolve(node)
	if isNull(node) {
		return
	}
	if node.Kind != yaml.MappingNode {
		what := "the file"
		if path != "" {
			what = "it"
		}
		l.add(position(file, node), path, "%s must hold keys with values", what)
		return
	}
	seen := map[string]int{}
	for i := 0; i+1 < len(node.Content); i += 2 {
		name, where := node.Content[i].Value, position(file, node.Content[i])
		if first, twice := seen[name]; twice {
			l.add(where, strings.TrimPrefix(path+"."+name, "."), "it is there already, in line %d", first)
			continue
		}
		seen[name] = node.Content[i].Line
		fn(where, name, node.Content[i+1])
	}
}

// itemsOf returns the scalars of a node, nil for an absent value, and whether the node has the right shape.
func itemsOf(node *yaml.Node, list bool) (items []string, ok bool) {
	node = resolve(node)
	switch {
	case isNull(node):
		return nil, true
	case !list && node.Kind == yaml.ScalarNode:
		return []string{node.Value}, true
	case list && node.Kind == yaml.SequenceNode:
		items = []string{}
		for _, item := range node.Content {
			if item = resolve(item); item.Kind != yaml.ScalarNode {
				return nil, false
			}
			items = append(items, item.Value)
		}
		return items, true
	}
	return nil, false
}

// resolve follows an alias. The parser has made sure that it leads to a node, and not to itself.
func resolve(node *yaml.Node) *yaml.Node {
	if node.Kind == yaml.AliasNode {
		return node.Alias
	}
	return node
}

func isNull(node *yaml.Node) bool {
	return node.Kind == yaml.ScalarNode && node.Tag == "!!null"
}

func position(file string, node *yaml.Node) string {
	return file + ":" + strconv.Itoa(node.Line)
}

func (l *loader) names() []string {
	var names []string
	for _, s := range l.sections {
		names = append(names, s.name)
	}
	return names
}

func (s *section) names() []string {
	var names []string
	for _, k := range s.keys {
		names = append(names, k.name)
	}
	return names
}

// fileVariable is not a setting: the command line takes the configuration file from it.
const fileVariable = "MYELIN_CONFIG"

// variable is the name of a setting in the environment.
func variable(section, key string) string {
	return "MYELIN_" + strings.ToUpper(section) + "_" + strings.ToUpper(key)
}

// serviceVariable matches the variables, with their values, by which Kubernetes tells every container where the services
// of its namespace are: those of a service named myelin-client look like settings.
var serviceVariable = regexp.MustCompile(`^MYELIN_(?:[A-Z0-9_]+_)?(?:` +
	`SERVICE_HOST=[0-9a-f.:]+|SERVICE_PORT(?:_[A-Z0-9_]+)?=[0-9]+|` +
	`PORT(?:_[0-9]+_(?:TCP|UDP|SCTP))?=(?:tcp|udp|sctp)://.+|` +
	`PORT_[0-9]+_(?:TCP|UDP|SCTP)_(?:PROTO=(?:tcp|udp|sctp)|PORT=[0-9]+|ADDR=[0-9a-f.:]+))$`)

// readEnvironment applies the variables that name a setting. A variable that begins like a section's but names no
// setting is refused like an unknown key; other MYELIN_ variables may belong to someone else, and are only noted.
func (l *loader) readEnvironment(environ []string) {
	given := map[string]string{}
	for _, entry := range environ {
		if name, text, _ := strings.Cut(entry, "="); strings.HasPrefix(name, "MYELIN_") && text != "" && !serviceVariable.MatchString(entry) {
			given[name] = text
		}
	}
	for i := range l.sections {
		s := &l.sections[i]
		for j := range s.keys {
			k := &s.keys[j]
			name := variable(s.name, k.name)
			text, ok := given[name]
			if !ok {
				continue
			}
			delete(given, name)
			l.set(name, s.name+"."+k.name, k, k.value.split(text))
		}
	}
	delete(given, fileVariable)
	for _, name := range slices.Sorted(maps.Keys(given)) {
		of := func(s section) bool { return strings.HasPrefix(name, variable(s.name, "")) }
		if i := slices.IndexFunc(l.sections, of); i >= 0 {
			s := &l.sections[i]
			l.add(name, "", "there is no such setting; allowed in %s: %s", s.name, strings.Join(s.names(), ", "))
		} else {
			l.config.Strangers = append(l.config.Strangers, name)
		}
	}
}

// checkTogether checks what only several settings together tell.
func (l *loader) checkTogether() {
	c := l.config
	l.checkListener("client", &c.Client.Listener)
	l.checkListener("federation", &c.Federation.Listener)
	if file := c.Federation.CACert; file != "" {
		if err := checkCertificates(file); err != nil {
			l.add(l.source["federation.ca_cert"], "federation.ca_cert", "%v", err)
		}
	}
	if c.Email.SMTP != "" && c.Email.From == "" {
		l.add(l.source["email.smtp"], "email.smtp", "it needs email.from, the sender of all e-mail")
	}
	if a := c.Push.APNs; a.AppID != "" && (a.Topic == "" || a.Key == "" || a.KeyID == "" || a.TeamID == "") {
		l.add(l.source["push.apns_app_id"], "push.apns_app_id", "it needs apns_topic, apns_key, apns_key_id and apns_team_id")
	}
	if f := c.Push.FCM; f.AppID != "" && f.ServiceAccount == "" {
		l.add(l.source["push.fcm_app_id"], "push.fcm_app_id", "it needs fcm_service_account")
	}
	if s := c.Media.S3; s.Endpoint != "" && s.Bucket == "" {
		l.add(l.source["media_s3.endpoint"], "media_s3.endpoint", "it needs media_s3.bucket")
	}
	if c.Registration.RequireEmail && c.Email.SMTP == "" {
		l.add(l.source["registration.require_email"], "registration.require_email", "it needs email.smtp, by which e-mail is sent")
	}
	if c.Registration.RequireToken && !c.Registration.Open {
		l.add(l.source["registration.require_token"], "registration.require_token",
			"it needs registration.open: true, which lets strangers register in the first place")
	}
}

func (l *loader) checkListener(name string, listener *Listener) {
	cert, key := name+".tls_cert", name+".tls_key"
	switch {
	case listener.TLSCert == "" && listener.TLSKey == "":
	case listener.TLSKey == "":
		l.add(l.source[cert], cert, "%s is missing: set both or none", key)
	case listener.TLSCert == "":
		l.add(l.source[key], key, "%s is missing: set both or none", cert)
	default:
		if _, err := tls.LoadX509KeyPair(listener.TLSCert, listener.TLSKey); err != nil {
			l.add(l.source[cert], cert, "%v", err)
		}
	}
}

func checkCertificates(file string) error {
	data, err := os.ReadFile(file) // #nosec G304: the operator names the file
	if err != nil {
		return err
	}
	if !x509.NewCertPool().AppendCertsFromPEM(data) {
		return errors.New(file + " has no PEM certificates")
	}
	return nil
}
