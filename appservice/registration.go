package appservice

import (
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"regexp"
	"strings"

	"go.yaml.in/yaml/v4"
)

// Registration is one application service, as its registration file describes it.
type Registration struct {
	// ID names the application service and never changes.
	ID string
	// URL is where it listens; empty if it wants no traffic.
	URL string
	// ASToken is what it shows to this server, HSToken what this server shows to it.
	ASToken, HSToken string
	// SenderLocalpart is the localpart of its own user.
	SenderLocalpart string
	// RateLimited tells whether users it acts as, other than its own, are subject to rate limits.
	RateLimited bool
	// ReceiveEphemeral asks for typing, receipts and presence.
	ReceiveEphemeral bool
	// Protocols are the third-party networks it serves.
	Protocols []string
	// Users, Aliases and Rooms are the namespaces it claims.
	Users, Aliases, Rooms Namespaces
}

// Namespaces are claims on identifiers of one sort.
type Namespaces []Namespace

// Namespace is a claim on all identifiers that its expression matches.
type Namespace struct {
	// Exclusive keeps everyone else from making such identifiers.
	Exclusive bool
	re        *regexp.Regexp
}

// Match tells whether an identifier is claimed.
func (n Namespaces) Match(id string) bool {
	for i := range n {
		if n[i].re.MatchString(id) {
			return true
		}
	}
	return false
}

// MatchExclusive tells whether an identifier is claimed exclusively.
func (n Namespaces) MatchExclusive(id string) bool {
	for i := range n {
		if n[i].Exclusive && n[i].re.MatchString(id) {
			return true
		}
	}
	return false
}

// maxFile is the size above which a registration file is refused: 1 MiB.
const maxFile = 1 << 20

// Load reads a registration file.
func Load(path string) (*Registration, error) {
	f, err := os.Open(path) // #nosec G304: the operator names the file
	if err != nil {
		return nil, fmt.Errorf("load application service: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("load application service: %w", err)
	}
	if len(data) > maxFile {
		return nil, fmt.Errorf("load application service: %s is larger than 1 MiB", path)
	}
	r, err := Parse(data)
	if err != nil {
		return nil, fmt.Errorf("load application service: %s: %w", path, err)
	}
	return r, nil
}

// file is the shape of a registration file. Pointers tell an absent key from an empty one.
type file struct {
	ID               *string  `yaml:"id"`
	URL              *string  `yaml:"url"`
	ASToken          *string  `yaml:"as_token"`
	HSToken          *string  `yaml:"hs_token"`
	SenderLocalpart  *string  `yaml:"sender_localpart"`
	RateLimited      *bool    `yaml:"rate_limited"`
	ReceiveEphemeral bool     `yaml:"receive_ephemeral"`
	Protocols        []string `yaml:"protocols"`
	Namespaces       *struct {
		Users   []fileNamespace `yaml:"users"`
		Aliases []fileNamespace `yaml:"aliases"`
		Rooms   []fileNamespace `yaml:"rooms"`
	} `yaml:"namespaces"`
}

type fileNamespace struct {
	Regex     *string `yaml:"regex"`
	Exclusive bool    `yaml:"exclusive"`
}

// Parse reads the text of a registration file and reports everything that is wrong with it at once. Keys it does not
// know are left alone: bridges write extensions.
func Parse(data []byte) (*Registration, error) {
	var f file
	if err := yaml.Unmarshal(data, &f); err != nil {
		return nil, fmt.Errorf("not a registration: %w", err)
	}
	r := &Registration{RateLimited: f.RateLimited == nil || *f.RateLimited, ReceiveEphemeral: f.ReceiveEphemeral, Protocols: f.Protocols}
	var wrong []error
	need := func(key string, from *string, to *string) {
		if from == nil || *from == "" {
			wrong = append(wrong, errors.New(key+": missing"))
			return
		}
		*to = *from
	}
	need("id", f.ID, &r.ID)
	need("as_token", f.ASToken, &r.ASToken)
	need("hs_token", f.HSToken, &r.HSToken)
	need("sender_localpart", f.SenderLocalpart, &r.SenderLocalpart)
	if strings.ContainsAny(r.SenderLocalpart, "@:\x00") {
		wrong = append(wrong, fmt.Errorf("sender_localpart: %q is not a localpart", r.SenderLocalpart))
	}
	if f.URL != nil && *f.URL != "" {
		if u, err := url.Parse(*f.URL); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			wrong = append(wrong, fmt.Errorf("url: %q is not an http or https URL", *f.URL))
		}
		r.URL = strings.TrimSuffix(*f.URL, "/")
	}
	if f.Namespaces == nil {
		return nil, errors.Join(append(wrong, errors.New("namespaces: missing"))...)
	}
	r.Users = compile("users", f.Namespaces.Users, &wrong)
	r.Aliases = compile("aliases", f.Namespaces.Aliases, &wrong)
	r.Rooms = compile("rooms", f.Namespaces.Rooms, &wrong)
	if len(wrong) > 0 {
		return nil, errors.Join(wrong...)
	}
	return r, nil
}

// compile compiles the expressions. They hold from the start of an identifier, as registrations written for other
// servers expect; where they end is up to them.
func compile(sort string, list []fileNamespace, wrong *[]error) Namespaces {
	var out Namespaces
	for i, n := range list {
		if n.Regex == nil {
			*wrong = append(*wrong, fmt.Errorf("namespaces.%s[%d].regex: missing", sort, i))
			continue
		}
		re, err := regexp.Compile(`\A(?:` + *n.Regex + `)`)
		if err != nil {
			*wrong = append(*wrong, fmt.Errorf("namespaces.%s[%d].regex: %w (back-references and look-around are not supported)", sort, i, err))
			continue
		}
		out = append(out, Namespace{Exclusive: n.Exclusive, re: re})
	}
	return out
}
