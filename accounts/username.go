package accounts

import (
	"net/http"
	"strings"

	"github.com/myelin-im/myelin/internal/mxerr"
)

// maxUserID is the length of the longest user id, in bytes.
const maxUserID = 255

// newUserID makes the user id for a wanted user name, which may have capitals.
//
// Spec: appendices v1.19, "User Identifiers".
func (a *API) newUserID(username string) (string, error) {
	lower := lowerASCII(username)
	invalid := func(text string) error {
		return mxerr.New(http.StatusBadRequest, "M_INVALID_USERNAME", text)
	}
	if lower == "" {
		return "", invalid("The user name is empty")
	}
	for i := range len(lower) {
		if c := lower[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && !strings.ContainsRune("._=-/+", rune(c)) {
			return "", invalid("User names consist of a-z, 0-9 and . _ = - / +")
		}
	}
	userID := a.userID(lower)
	if len(userID) > maxUserID {
		return "", invalid("The user name is too long")
	}
	return userID, nil
}

// newPersonID is newUserID for those who are no application services: names that begin with _ are theirs.
func (a *API) newPersonID(username string) (string, error) {
	userID, err := a.newUserID(username)
	switch {
	case err != nil:
		return "", err
	case a.services.ReservedUser(userID) != nil:
		return "", mxerr.New(http.StatusBadRequest, "M_EXCLUSIVE", "This user name is reserved by an application service")
	case username[0] == '_':
		return "", mxerr.New(http.StatusBadRequest, "M_INVALID_USERNAME", "User names cannot begin with _")
	}
	return userID, nil
}

// lowerASCII changes A-Z and leaves everything else, unlike strings.ToLower, which makes ASCII of some other letters.
func lowerASCII(s string) string {
	return strings.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			r += 'a' - 'A'
		}
		return r
	}, s)
}

// knownUserID makes the user id that somebody means who gives a user id or a localpart, with capitals perhaps. It is
// empty for users of other servers.
func (a *API) knownUserID(name string) string {
	if !strings.HasPrefix(name, "@") {
		return a.userID(lowerASCII(name))
	}
	localpart, local := a.localpart(name)
	if !local {
		return ""
	}
	return a.userID(lowerASCII(localpart))
}
