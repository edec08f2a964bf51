package routes

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"

	"github.com/myelin-im/myelin/homeserver"
	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/storage"

	. "github.com/myelin-im/myelin/test/harness"
)

// notServed are the endpoints of the client-server API that this server does not offer, by the reason why. It answers
// them like any path that nobody has heard of, which is how clients learn that a feature is missing. A line that is
// served has no place here.
var notServed = map[string][]string{
	"push gateways": {},
	"relays for calls": {
		"GET /_matrix/client/v3/voip/turnServer",
	},
	"signing in elsewhere": {
		"GET /_matrix/client/v1/auth_metadata",
		"GET /_matrix/client/v3/login/sso/redirect",
		"GET /_matrix/client/v3/login/sso/redirect/{idpId}",
	},
}

// moreForGuests are endpoints that guests may call although the specification does not list them, and why.
var moreForGuests = map[string]string{
	"POST /_matrix/client/v3/join/{roomIdOrAlias}": "the same deed as POST /rooms/{roomId}/join, and the only way in that client libraries know",
	"GET /_matrix/client/v3/capabilities":          "matrix-js-sdk asks for guests too, and again and again when it is refused",
	"GET /_matrix/client/v3/thirdparty/protocols":  "Element asks for the networks before it knows whether its user is a guest",
}

// An endpoint is a line of the specification.
type endpoint struct {
	method, path, auth, guest, deprecated, since string
}

func (e endpoint) String() string { return e.method + " " + e.path }

// TestEndpoints prints the table of routes beside the specification's client-server API, and compares the two: every
// endpoint is served to those whom the specification lets in, or stands in notServed and is not.
func TestEndpoints(t *testing.T) {
	reasons := map[string]string{}
	for reason, list := range notServed {
		for _, e := range list {
			reasons[e] = reason
		}
	}
	served := map[string]httpapi.Row{}
	for _, row := range homeserver.Routes() {
		served[row.Method+" "+row.Path] = row
	}
	var table strings.Builder
	columns := tabwriter.NewWriter(&table, 0, 0, 2, ' ', 0)
	fmt.Fprintln(columns, "ENDPOINT\tSINCE\tAUTH\tGUESTS\tSERVED TO\tLIMIT")
	for _, e := range endpoints(t) {
		row, ok := served[e.String()]
		who, reason := row.Who, reasons[e.String()]
		delete(served, e.String())
		delete(reasons, e.String())
		switch {
		case ok && reason != "":
			t.Errorf("%s is served: take it off the list of what is not", e)
		case !ok && reason == "":
			t.Errorf("%s is not served", e)
		case ok:
			e.compare(t, who)
		default:
			who = "(" + reason + ")"
		}
		fmt.Fprintf(columns, "%s\t%s\t%s\t%s\t%s\t%s\n", e, e.since, e.auth, e.guest, who, row.Class)
	}
	for e := range reasons {
		t.Errorf("%s is on the list of what is not served, but the specification does not have it", e)
	}
	for _, row := range homeserver.Routes() {
		if _, beyond := served[row.Method+" "+row.Path]; beyond {
			fmt.Fprintf(columns, "%s %s\t\t\t\t%s\t%s\n", row.Method, row.Path, row.Who, row.Class)
		}
	}
	columns.Flush()
	t.Log("\n" + table.String())
}

// compare checks who may call an endpoint.
func (e endpoint) compare(t *testing.T, who string) {
	bits := strings.Split(who, "|")
	has := func(bit string) bool { return slices.Contains(bits, bit) }
	switch e.auth {
	case "no":
		if !has("anyone") && !has("optional") {
			t.Errorf("%s is for %s, the specification has no authentication", e, who)
		}
	case "user":
		if !has("user") && !has("admin") {
			t.Errorf("%s is for %s, the specification asks for a user's token", e, who)
		}
	case "appservice":
		if who != "appservice" {
			t.Errorf("%s is for %s, the specification wants application services alone", e, who)
		}
	}
	if e.auth == "no" || has("optional") {
		return // there are no guests where nobody is known, and the handlers decide where that is a choice
	}
	if wanted := e.guest == "yes" || moreForGuests[e.String()] != ""; wanted != has("guest") {
		t.Errorf("%s is for %s, the specification says of guests: %s", e, who, e.guest)
	}
}

// TestNotServed asks a server for what it does not offer.
func TestNotServed(t *testing.T) {
	s := Start(t, storage.SQLite)
	c := s.Register(t, "asks")
	for _, list := range notServed {
		for _, e := range list {
			method, path, _ := strings.Cut(e, " ")
			c.Refused(404, "M_UNRECOGNIZED", method, strings.NewReplacer("{", "", "}", "").Replace(path), nil)
		}
	}
}

// endpoints reads the specification's client-server API.
func endpoints(t *testing.T) (list []endpoint) {
	raw, err := os.ReadFile("../testdata/endpoints.tsv")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(strings.TrimSpace(string(raw)), "\n")[1:] {
		f := strings.Split(line, "\t")
		list = append(list, endpoint{f[0], f[1], f[2], f[3], f[4], f[5]})
	}
	if len(list) < 160 {
		t.Fatalf("the list has %d endpoints", len(list))
	}
	return list
}
