package accounts

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"

	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/internal/ratelimit"
)

// SpecVersions are the versions of the client-server API that this server keeps to.
// Of each it may lack whole features, whose endpoints are then unknown.
var SpecVersions = []string{
	"v1.1", "v1.2", "v1.3", "v1.4", "v1.5", "v1.6", "v1.7", "v1.8", "v1.9", "v1.10",
	"v1.11", "v1.12", "v1.13", "v1.14", "v1.15", "v1.16", "v1.17", "v1.18", "v1.19",
}

// unstableFeatures are what of no released version this server does, or did before its release.
var unstableFeatures = map[string]bool{
	"computer.gingershaped.msc4466":                  true, // choice of rooms for profile changes
	"fi.mau.msc2659.stable":                          true, // pings of application services
	"org.matrix.e2e_cross_signing":                   true, // cross-signing
	"org.matrix.msc2285.stable":                      true, // private read receipts
	"org.matrix.msc3026.busy_presence":               true, // presence "busy"
	"org.matrix.msc3266":                             true, // summaries of rooms
	"org.matrix.msc1763":                             true, // message retention
	"org.matrix.msc3391":                             true, // deleting account data
	"org.matrix.msc3440.stable":                      true, // threads
	"org.matrix.msc3771":                             true, // read receipts in threads
	"org.matrix.msc3773":                             true, // unread counts of threads
	"org.matrix.msc3827.stable":                      true, // public rooms by type
	"org.matrix.msc3874":                             true, // filtering messages by their relations
	"org.matrix.msc3916.stable":                      true, // media for those who are logged in
	"org.matrix.msc4069":                             true, // profile changes that stay out of rooms
	"org.matrix.msc4380.stable":                      true, // blocking invites
	"uk.timedout.msc4323":                            true, // locking and suspending accounts
	"org.matrix.msc2836":                             true, // walking threads by relationships
	"org.matrix.msc4140":                             true, // delayed events
	"org.matrix.msc4262":                             true, // profiles in sliding sync
	"org.matrix.msc4306":                             true, // thread subscriptions
	"org.matrix.msc4429":                             true, // profiles in sync
	"org.matrix.msc4354":                             true, // sticky events
	"org.matrix.simplified_msc3575":                  true, // sliding sync, as it was before MSC4186 was accepted
	"uk.half-shot.msc2666.query_mutual_rooms":        true, // rooms that two users share
	"uk.half-shot.msc2666.query_mutual_rooms.stable": true,
	"uk.tcpip.msc4133.stable":                        true, // profile fields
}

// WellKnown is what the server says of itself under /.well-known/matrix/. What is empty is not served, so that a web
// server in front may do it.
type WellKnown struct {
	// ClientURL is the base URL of the client-server API.
	ClientURL string
	// Server is where other servers reach this one, as host:port.
	Server string
	// Contacts and SupportPage are where users get help.
	Contacts    []Contact
	SupportPage string
	// PolicyKey is the ed25519 public key, in unpadded base64, of the policy server under this server's name.
	PolicyKey string
}

// Contact is a way to reach those who run the server.
type Contact struct {
	MatrixID string `json:"matrix_id,omitempty"`
	Email    string `json:"email_address,omitempty"`
	// Role is m.role.admin or m.role.security.
	Role string `json:"role"`
}

func (a *API) discoveryEndpoints() []httpapi.Endpoint {
	return []httpapi.Endpoint{
		httpapi.New("GET", "/_matrix/client/versions", httpapi.Anyone, ratelimit.None, a.versions),
		httpapi.New("GET", v3+"/capabilities", httpapi.User|httpapi.Guest, ratelimit.Read, a.capabilities),
		httpapi.New("GET", "/.well-known/matrix/client", httpapi.Anyone, ratelimit.None, a.wellKnownClient),
		httpapi.New("GET", "/.well-known/matrix/server", httpapi.Anyone, ratelimit.None, a.wellKnownServer),
		httpapi.New("GET", "/.well-known/matrix/support", httpapi.Anyone, ratelimit.None, a.wellKnownSupport),
		httpapi.New("GET", "/.well-known/matrix/policy_server", httpapi.Anyone, ratelimit.None, a.wellKnownPolicyServer),
	}
}

type versionsResponse struct {
	Versions         []string        `json:"versions"`
	UnstableFeatures map[string]bool `json:"unstable_features"`
}

// versions is the same for everyone, so it does not look at tokens, which may have expired.
func (a *API) versions(context.Context, *httpapi.Caller, *httpapi.Empty) (*versionsResponse, error) {
	return &versionsResponse{SpecVersions, unstableFeatures}, nil
}

type enabled struct {
	Enabled bool `json:"enabled"`
}

type roomVersions struct {
	Default   string            `json:"default"`
	Available map[string]string `json:"available"`
}

type capabilitySet struct {
	ChangePassword enabled      `json:"m.change_password"`
	RoomVersions   roomVersions `json:"m.room_versions"`
	ProfileFields  fields       `json:"m.profile_fields"`
	SetDisplayName enabled      `json:"m.set_displayname"`
	SetAvatarURL   enabled      `json:"m.set_avatar_url"`
	ThirdParty     enabled      `json:"m.3pid_changes"`
	GetLoginToken  enabled      `json:"m.get_login_token"`
	ForgetOnLeave  enabled      `json:"m.forget_forced_upon_leave"`
	// Moderation is for administrators only, as the specification asks where all of it would be false.
	Moderation *moderation `json:"m.account_moderation,omitempty"`
}

// fields are those of the user's own profile that the user may set.
type fields struct {
	Enabled bool     `json:"enabled"`
	Allowed []string `json:"allowed,omitempty"` // none: all
}

// moderation is what an administrator can do to accounts.
type moderation struct {
	Suspend bool `json:"suspend"`
	Lock    bool `json:"lock"`
}

type capabilitiesResponse struct {
	Capabilities any `json:"capabilities"`
}

// withOthers adds capabilities of other features to a set.
func (s *capabilitySet) withOthers(others map[string]any) (any, error) {
	if len(others) == 0 {
		return s, nil
	}
	raw, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("encode capabilities: %w", err)
	}
	all := map[string]any{}
	if err := json.Unmarshal(raw, &all); err != nil {
		return nil, fmt.Errorf("decode capabilities: %w", err)
	}
	maps.Copy(all, others)
	return all, nil
}

func (a *API) capabilities(_ context.Context, by *httpapi.Caller, _ *httpapi.Empty) (*capabilitiesResponse, error) {
	person := enabled{by.Appservice == nil && !by.Guest}
	profile := fields{Enabled: true}
	if by.Guest {
		profile.Allowed = []string{fieldDisplayName}
	}
	var moderates *moderation
	if by.Admin {
		moderates = &moderation{Suspend: true, Lock: true}
	}
	set := capabilitySet{
		Moderation:     moderates,
		ChangePassword: person,
		RoomVersions:   roomVersions{a.cfg.DefaultRoomVersion, a.cfg.RoomVersions},
		ProfileFields:  profile,
		SetDisplayName: enabled{true},
		SetAvatarURL:   enabled{!by.Guest},
		ThirdParty:     enabled{a.mail != nil && !by.Guest},
		GetLoginToken:  person,
	}
	all, err := set.withOthers(a.cfg.Capabilities)
	return &capabilitiesResponse{all}, err
}

type baseURL struct {
	BaseURL string `json:"base_url"`
}

type clientWellKnown struct {
	Homeserver baseURL `json:"m.homeserver"`
}

// clientWellKnown is what clients are told of the client-server API's address, or nil.
func (a *API) clientWellKnown() *clientWellKnown {
	if a.cfg.WellKnown.ClientURL == "" {
		return nil
	}
	return &clientWellKnown{baseURL{a.cfg.WellKnown.ClientURL}}
}

var errNotServed = mxerr.NotFound("This server does not serve this document")

func (a *API) wellKnownClient(context.Context, *httpapi.Caller, *httpapi.Empty) (*clientWellKnown, error) {
	if w := a.clientWellKnown(); w != nil {
		return w, nil
	}
	return nil, errNotServed
}

type serverWellKnown struct {
	Server string `json:"m.server"`
}

func (a *API) wellKnownServer(context.Context, *httpapi.Caller, *httpapi.Empty) (*serverWellKnown, error) {
	if a.cfg.WellKnown.Server == "" {
		return nil, errNotServed
	}
	return &serverWellKnown{a.cfg.WellKnown.Server}, nil
}

type supportWellKnown struct {
	Contacts    []Contact `json:"contacts,omitempty"`
	SupportPage string    `json:"support_page,omitempty"`
}

func (a *API) wellKnownSupport(context.Context, *httpapi.Caller, *httpapi.Empty) (*supportWellKnown, error) {
	w := &a.cfg.WellKnown
	if len(w.Contacts) == 0 && w.SupportPage == "" {
		return nil, errNotServed
	}
	return &supportWellKnown{w.Contacts, w.SupportPage}, nil
}

type policyWellKnown struct {
	PublicKeys map[string]string `json:"public_keys"`
}

// wellKnownPolicyServer is what rooms need to name this server in m.room.policy.
//
// Spec: client-server API v1.19, "Policy Servers".
func (a *API) wellKnownPolicyServer(context.Context, *httpapi.Caller, *httpapi.Empty) (*policyWellKnown, error) {
	if a.cfg.WellKnown.PolicyKey == "" {
		return nil, errNotServed
	}
	return &policyWellKnown{map[string]string{"ed25519": a.cfg.WellKnown.PolicyKey}}, nil
}
