package appservice

import (
	"context"
	"net/http"

	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/internal/ratelimit"
)

// API serves what clients ask of application services.
type API struct {
	set    *Set
	client *http.Client
}

// New makes the API.
func New(set *Set) *API {
	// Application services are the operator's, wherever they listen; they do not redirect.
	return &API{set: set, client: &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}}
}

// Endpoints is the table of routes.
func (a *API) Endpoints() []httpapi.Endpoint {
	const path = "/_matrix/client/v3/thirdparty"
	return []httpapi.Endpoint{
		httpapi.New(http.MethodPost, "/_matrix/client/v1/appservice/{appserviceId}/ping", httpapi.Appservice, ratelimit.Admin, a.ping),
		httpapi.New(http.MethodGet, path+"/protocols", httpapi.User|httpapi.Guest, ratelimit.Read, a.protocols),
		httpapi.New(http.MethodGet, path+"/protocol/{protocol}", httpapi.User, ratelimit.Read, a.protocol),
		httpapi.New(http.MethodGet, path+"/location/{protocol}", httpapi.User, ratelimit.Read, a.search),
		httpapi.New(http.MethodGet, path+"/user/{protocol}", httpapi.User, ratelimit.Read, a.search),
		httpapi.New(http.MethodGet, path+"/location", httpapi.User, ratelimit.Read, a.locationsOf),
		httpapi.New(http.MethodGet, path+"/user", httpapi.User, ratelimit.Read, a.usersOf),
	}
}

// Protocol describes a third-party network to clients.
//
// Spec: client-server API v1.19, "Third-party Networks".
type Protocol struct {
	UserFields     []string             `json:"user_fields"`
	LocationFields []string             `json:"location_fields"`
	Icon           string               `json:"icon"`
	FieldTypes     map[string]FieldType `json:"field_types"`
	Instances      []Instance           `json:"instances"`
}

// FieldType says what a field of a network's identifiers looks like.
type FieldType struct {
	Regexp      string `json:"regexp"`
	Placeholder string `json:"placeholder"`
}

// Instance is one network of a protocol.
type Instance struct {
	NetworkID  string            `json:"network_id"`
	InstanceID string            `json:"instance_id,omitempty"`
	Desc       string            `json:"desc"`
	Icon       string            `json:"icon,omitempty"`
	Fields     map[string]string `json:"fields"`
}

// bare is a protocol of which no more is known than that an application service speaks it.
func bare() *Protocol {
	return &Protocol{UserFields: []string{}, LocationFields: []string{}, FieldTypes: map[string]FieldType{}, Instances: []Instance{}}
}

type protocolMap map[string]*Protocol

func (a *API) protocols(context.Context, *httpapi.Caller, *httpapi.Empty) (*protocolMap, error) {
	out := protocolMap{}
	for _, r := range a.set.All() {
		for _, p := range r.Protocols {
			out[p] = bare()
		}
	}
	return &out, nil
}

type protocolRequest struct {
	Protocol string `path:"protocol"`
}

func (a *API) protocol(_ context.Context, _ *httpapi.Caller, in *protocolRequest) (*Protocol, error) {
	if !a.set.speaks(in.Protocol) {
		return nil, mxerr.NotFound("No application service speaks this protocol")
	}
	return bare(), nil
}

// errNothingFound answers searches: what nobody finds is not found, as the specification wants.
var errNothingFound = mxerr.NotFound("Nothing was found")

func (a *API) search(_ context.Context, _ *httpapi.Caller, in *protocolRequest) (*httpapi.Empty, error) {
	if !a.set.speaks(in.Protocol) {
		return nil, mxerr.NotFound("No application service speaks this protocol")
	}
	return nil, errNothingFound
}

type aliasRequest struct {
	Alias string `query:"alias" required:"true"`
}

func (a *API) locationsOf(context.Context, *httpapi.Caller, *aliasRequest) (*httpapi.Empty, error) {
	return nil, errNothingFound
}

type userRequest struct {
	UserID string `query:"userid" required:"true"`
}

func (a *API) usersOf(context.Context, *httpapi.Caller, *userRequest) (*httpapi.Empty, error) {
	return nil, errNothingFound
}
