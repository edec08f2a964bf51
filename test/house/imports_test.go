package house

import (
	"strconv"
	"strings"
	"testing"
)

// A row is a floor of the house. A package may import packages of lower rows, never of its own or a higher one;
// below the same top-level folder it may import what it likes, as long as pure packages stay pure.
type row struct {
	height  int
	folders []string // each with everything below it, unless a longer entry claims that
	reason  string
}

// tests is the height of packages that only tests use.
const tests = 10

var rows = []row{
	{0, []string{"internal"},
		"internal has no domain: it knows neither rooms nor users nor tables"},
	{1, []string{"roomserver/pdu", "roomserver/authrules", "roomserver/stateres", "roomserver/snapshot", "roomserver/authchain", "push/rules", "syncapi/filter"},
		"pure packages have no clock, network or database, so that they can be tested by script and fuzzed"},
	{1, []string{"appservice"},
		"what application services have registered for is asked by accounts and everyone above"},
	{1, []string{"storage"},
		"storage holds no feature's SQL and knows no feature"},
	{1, []string{"federation/client"},
		"outgoing requests know nothing of rooms, so that roomserver can be given them without a cycle"},
	{2, []string{"roomserver"},
		"roomserver is the only writer of rooms; what reacts to an event reads the log behind it"},
	{3, []string{"accounts"},
		"accounts stands above roomserver, because a profile change writes memberships"},
	{4, []string{"e2ee", "ephemeral", "relations"},
		"these know users and rooms, but no API and not each other"},
	{5, []string{"push"},
		"what notifies stands above ephemeral, because receipts decide on what is unread"},
	{6, []string{"clientapi", "adminapi", "federation", "syncapi", "mediaapi", "voip", "directory", "notices", "reports", "retention", "search", "delayed"},
		"an API uses services below it; what it needs of a neighbour is a function given at assembly"},
	{7, []string{"homeserver/config", "homeserver/signingkey"},
		"configuration reaches the rest in pieces; only the assembly knows all of it"},
	{8, []string{"homeserver"},
		"homeserver is the only one that knows everyone"},
	{9, []string{"cmd"},
		"main parses flags, calls homeserver and waits"},
	{tests, []string{"test", "storage/storagetest", "roomserver/roomservertest", "internal/mail/mailtest"},
		"tests may use everything; nothing but tests may use them"},
}

// floor finds the row of a folder: the longest entry that holds it.
func floor(folder string) (found *row, entry string) {
	for i := range rows {
		for _, candidate := range rows[i].folders {
			if len(candidate) > len(entry) && (folder == candidate || strings.HasPrefix(folder, candidate+"/")) {
				found, entry = &rows[i], candidate
			}
		}
	}
	return found, entry
}

func allowed(from, to string) bool {
	importer, its := floor(from)
	imported, others := floor(to)
	if its == others { // within one folder
		return true
	}
	if importer.height == 1 && imported.height == 1 { // pure packages build on each other
		return strings.HasPrefix(its, "roomserver/") && strings.HasPrefix(others, "roomserver/")
	}
	return imported.height < importer.height || importer.height == tests
}

func TestImportsPointDown(t *testing.T) {
	for _, folder := range folders(t) {
		importer, _ := floor(folder.path)
		if importer == nil {
			t.Errorf("%s has no place in the house: give it one in test/house/imports_test.go, with a reason", folder.path)
			continue
		}
		for _, file := range folder.files {
			for _, spec := range file.Imports {
				target, err := strconv.Unquote(spec.Path.Value)
				if err != nil {
					t.Fatal(err)
				}
				to, ours := strings.CutPrefix(target, module+"/")
				if !ours {
					continue
				}
				imported, _ := floor(to)
				if imported == nil || !allowed(folder.path, to) {
					t.Errorf("%s: %s may not import %s: %s", at(spec.Pos()), folder.path, to, importer.reason)
				}
			}
		}
	}
}

// TestRowsSayWhatTheyMean keeps the table itself honest.
func TestRowsSayWhatTheyMean(t *testing.T) {
	for _, test := range []struct {
		from, to string
		want     bool
	}{
		{"roomserver", "storage", true},
		{"roomserver", "roomserver/pdu", true},
		{"roomserver/stateres", "roomserver/pdu", true},
		{"roomserver/pdu", "storage", false},
		{"roomserver/pdu", "roomserver", false},
		{"push/rules", "roomserver/pdu", false},
		{"storage", "roomserver/pdu", false},
		{"roomserver", "accounts", false},
		{"roomserver", "federation/client", true},
		{"federation", "federation/client", true},
		{"federation/client", "federation", false},
		{"syncapi", "clientapi", false},
		{"clientapi/media", "clientapi", true},
		{"push", "e2ee", true},
		{"push/unread", "ephemeral", true},
		{"ephemeral", "push", false},
		{"internal/httpapi", "internal/mxerr", true},
		{"internal/httpapi", "storage", false},
		{"accounts", "homeserver/config", false},
		{"homeserver", "homeserver/config", true},
		{"homeserver", "storage/storagetest", false},
		{"cmd/myelin", "homeserver", true},
		{"test/harness", "storage/storagetest", true},
	} {
		if allowed(test.from, test.to) != test.want {
			t.Errorf("%s importing %s: allowed is %v", test.from, test.to, !test.want)
		}
	}
}
