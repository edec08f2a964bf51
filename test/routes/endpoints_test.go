package routes

import (
	"os"
	"strings"
	"testing"

	"github.com/myelin-im/myelin/homeserver"
)

// TestEndpoints compares the table of routes with what the specification says of the endpoints that a client for rooms,
// accounts and sync needs: that they are there, and who may call them.
func TestEndpoints(t *testing.T) {
	served := map[string]string{}
	for _, row := range homeserver.Routes() {
		served[row.Method+" "+row.Path] = row.Who
	}
	for _, field := range endpoints(t) {
		endpoint, auth, guest := field[0]+" "+field[1], field[2], field[3]
		who, ok := served[endpoint]
		if !ok {
			t.Errorf("%s is not served", endpoint)
			continue
		}
		needsToken := strings.Contains(who, "user")
		if needsToken != (auth == "user") && auth != "optional" && !strings.Contains(who, "optional") {
			t.Errorf("%s is for %s, the specification says authentication: %s", endpoint, who, auth)
		}
		if needsToken && guest == "yes" && !strings.Contains(who, "guest") {
			t.Errorf("%s is for %s, the specification lets guests in", endpoint, who)
		}
	}
}

// endpoints reads the list: method, path, authentication, guests.
func endpoints(t *testing.T) (list [][]string) {
	raw, err := os.ReadFile("../testdata/endpoints.tsv")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(strings.TrimSpace(string(raw)), "\n")[1:] {
		list = append(list, strings.Split(line, "\t"))
	}
	if len(list) < 70 {
		t.Fatalf("the list has %d endpoints", len(list))
	}
	return list
}
