package appservice

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"
)

// Set is all application services of a server. A nil Set has none. It is immutable.
type Set struct {
	server  string
	list    []*Registration
	byToken map[[sha256.Size]byte]*Registration
}

// NewSet joins the registrations of the server with the given name. Two must not share an id or an as_token.
func NewSet(serverName string, list ...*Registration) (*Set, error) {
	s := &Set{server: serverName, list: list, byToken: make(map[[sha256.Size]byte]*Registration, len(list))}
	ids := make(map[string]bool, len(list))
	for _, r := range list {
		token := sha256.Sum256([]byte(r.ASToken))
		if ids[r.ID] {
			return nil, fmt.Errorf("two application services have the id %q", r.ID)
		}
		if other := s.byToken[token]; other != nil {
			return nil, fmt.Errorf("application services %q and %q have the same as_token", other.ID, r.ID)
		}
		ids[r.ID] = true
		s.byToken[token] = r
	}
	return s, nil
}

// All returns the registrations in the order of NewSet. The list is not to be changed.
func (s *Set) All() []*Registration {
	if s == nil {
		return nil
	}
	return s.list
}

// ByToken returns the application service with this as_token, or nil. How long it takes tells nothing about tokens:
// they are looked up by their hash.
func (s *Set) ByToken(token string) *Registration {
	if s == nil || len(s.list) == 0 {
		return nil
	}
	return s.byToken[sha256.Sum256([]byte(token))]
}

// Sender is the user id of the application service's own user.
func (s *Set) Sender(r *Registration) string { return "@" + r.SenderLocalpart + ":" + s.server }

// Owns tells whether the application service may act as a user: its own one, or a local one in its namespaces.
func (s *Set) Owns(r *Registration, userID string) bool {
	return userID == s.Sender(r) || s.local(userID) && r.Users.Match(userID)
}

// ReservedUser returns the application service, if any, that keeps everyone else from registering this local user.
func (s *Set) ReservedUser(userID string) *Registration {
	for _, r := range s.All() {
		if userID == s.Sender(r) || s.local(userID) && r.Users.MatchExclusive(userID) {
			return r
		}
	}
	return nil
}

// ReservedAlias returns the application service, if any, that keeps everyone else from making this alias.
func (s *Set) ReservedAlias(alias string) *Registration {
	for _, r := range s.All() {
		if r.Aliases.MatchExclusive(alias) {
			return r
		}
	}
	return nil
}

func (s *Set) local(userID string) bool {
	_, domain, ok := strings.Cut(userID, ":")
	return ok && domain == s.server
}

// byID returns the application service with an id, or nil.
func (s *Set) byID(id string) *Registration {
	for _, r := range s.All() {
		if r.ID == id {
			return r
		}
	}
	return nil
}

// speaks tells whether an application service serves a protocol.
func (s *Set) speaks(protocol string) bool {
	return slices.ContainsFunc(s.All(), func(r *Registration) bool { return slices.Contains(r.Protocols, protocol) })
}
