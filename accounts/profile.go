package accounts

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"
	"unicode/utf8"

	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/internal/ratelimit"
	"github.com/myelin-im/myelin/storage"
)

func (a *API) profileEndpoints() []httpapi.Endpoint {
	const profile = v3 + "/profile/{userId}"
	const own = httpapi.User | httpapi.Guest
	return []httpapi.Endpoint{
		httpapi.New("GET", profile, httpapi.Anyone, ratelimit.Read, a.getProfile),
		httpapi.New("GET", profile+"/{keyName}", httpapi.Anyone, ratelimit.Read, a.getProfileField),
		httpapi.New("PUT", profile+"/{keyName}", own, ratelimit.Account, a.putProfileField).UnlessSuspended(),
		httpapi.New("DELETE", profile+"/{keyName}", own, ratelimit.Account, a.deleteProfileField).UnlessSuspended(),
	}
}

// The profile fields that the specification defines; the first two stand in membership events.
const (
	fieldDisplayName = "displayname"
	fieldAvatarURL   = "avatar_url"
	fieldTimeZone    = "m.tz"
)

const (
	maxProfile      = 64 << 10 // bytes of a profile as JSON, which must stay below
	maxProfileField = 255      // bytes of a field's name
	maxUserName     = 256      // characters of a display name
	maxAvatarURL    = 1000     // bytes
	// profilePatience is how long an answer waits for a change to arrive in the user's rooms. It arrives
	// there in any case.
	profilePatience = 10 * time.Second
)

// Profile is what a user tells others of themselves.
type Profile struct {
	// Fields holds each field's JSON value, by name.
	Fields map[string]json.RawMessage
}

// AppendJSON appends the profile as an object.
func (p *Profile) AppendJSON(dst []byte) ([]byte, error) {
	b, err := json.Marshal(p.Fields)
	return append(dst, b...), err
}

// ReadProfile returns the profile of a local user, or nil if there is no such user.
func ReadProfile(tx *storage.Tx, userID string) (*Profile, error) {
	rows := tx.Query(`SELECT p.field, p.value FROM accounts a LEFT JOIN profiles p ON p.user_id = a.user_id WHERE a.user_id = $1`, userID)
	var p *Profile
	for rows.Next() {
		if p == nil {
			p = &Profile{map[string]json.RawMessage{}}
		}
		var field *string
		var value json.RawMessage
		rows.Scan(&field, &value)
		if field != nil {
			p.Fields[*field] = value
		}
	}
	return p, rows.Close()
}

// MemberProfile returns what membership events of a local user tell; empty where there is none.
func MemberProfile(tx *storage.Tx, userID string) (displayName, avatarURL string, err error) {
	rows := tx.Query(`SELECT field, value FROM profiles WHERE user_id = $1 AND field IN ($2, $3)`, userID, fieldDisplayName, fieldAvatarURL)
	for rows.Next() {
		var field string
		var value json.RawMessage
		rows.Scan(&field, &value)
		if field == fieldDisplayName {
			displayName = jsonString(value)
		} else {
			avatarURL = jsonString(value)
		}
	}
	return displayName, avatarURL, rows.Close()
}

// jsonString is the string that value holds, or empty.
func jsonString(value json.RawMessage) string {
	var s string
	if json.Unmarshal(value, &s) != nil {
		return ""
	}
	return s
}

type profileRequest struct {
	UserID string `path:"userId"`
}

type profileFieldRequest struct {
	UserID string `path:"userId"`
	Field  string `path:"keyName"`
}

// changeFieldRequest is a change of a profile field.
type changeFieldRequest struct {
	profileFieldRequest
	// Propagate is MSC4069's, PropagateTo MSC4466's choice of rooms.
	Propagate   string `query:"org.matrix.msc4069.propagate" default:"true" enum:"true|false"`
	PropagateTo string `query:"computer.gingershaped.msc4466.propagate_to" default:"all" enum:"all|unchanged|none"`
}

type putFieldRequest struct {
	changeFieldRequest
	Body json.RawMessage `body:"raw"`
}

func (a *API) getProfile(ctx context.Context, _ *httpapi.Caller, in *profileRequest) (*Profile, error) {
	var p *Profile
	if _, local := a.localpart(in.UserID); !local && a.profile != nil {
		return a.remoteProfile(ctx, in.UserID)
	} else if local {
		err := a.db.Read(ctx, func(tx *storage.Tx) (err error) {
			p, err = ReadProfile(tx, in.UserID)
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("read profile: %w", err)
		}
	}
	if p == nil {
		return nil, mxerr.NotFound("There is no profile of this user")
	}
	return p, nil
}

func (a *API) getProfileField(ctx context.Context, by *httpapi.Caller, in *profileFieldRequest) (*Profile, error) {
	if err := checkField(in.Field); err != nil {
		return nil, err
	}
	p, err := a.getProfile(ctx, by, &profileRequest{in.UserID})
	if err != nil {
		return nil, err
	}
	value, ok := p.Fields[in.Field]
	if !ok {
		return nil, mxerr.NotFound("The profile has no such field")
	}
	return &Profile{map[string]json.RawMessage{in.Field: value}}, nil
}

// checkField checks a field's name.
//
// Spec: appendices v1.19, "Common Namespaced Identifier Grammar".
func checkField(name string) error {
	switch {
	case len(name) > maxProfileField:
		return mxerr.New(http.StatusBadRequest, "M_KEY_TOO_LARGE", "The field's name is longer than 255 bytes")
	case name == "" || name[0] < 'a' || name[0] > 'z' || !consistsOf(name, "abcdefghijklmnopqrstuvwxyz0123456789._-"):
		return mxerr.InvalidParam("This is not the name of a profile field")
	}
	return nil
}

func (a *API) putProfileField(ctx context.Context, by *httpapi.Caller, in *putFieldRequest) (*httpapi.Empty, error) {
	if err := checkField(in.Field); err != nil {
		return nil, err
	}
	var members map[string]json.RawMessage
	if err := json.Unmarshal(in.Body, &members); err != nil {
		return nil, mxerr.BadJSON("The body is not as it should be").With(err)
	}
	value, ok := members[in.Field]
	if !ok {
		return nil, mxerr.MissingParam("Missing parameter " + in.Field)
	}
	switch in.Field {
	case fieldDisplayName, fieldAvatarURL:
		var err error
		if value, err = checkText(in.Field, value); err != nil {
			return nil, err
		}
	case fieldTimeZone:
		if value[0] != '"' { // which zones there are, clients know better
			return nil, mxerr.BadJSON(fieldTimeZone + " must be a string")
		}
	}
	return nil, a.changeProfile(ctx, by, &in.changeFieldRequest, value)
}

func (a *API) deleteProfileField(ctx context.Context, by *httpapi.Caller, in *changeFieldRequest) (*httpapi.Empty, error) {
	if err := checkField(in.Field); err != nil {
		return nil, err
	}
	return nil, a.changeProfile(ctx, by, in, nil)
}

// checkText checks a display name or avatar. An empty one deletes the field, which is how clients did it before there
// was a method for that.
func checkText(field string, value json.RawMessage) (json.RawMessage, error) {
	var s *string
	if err := json.Unmarshal(value, &s); err != nil || s == nil {
		return nil, mxerr.BadJSON(field + " must be a string")
	}
	switch {
	case *s == "":
		return nil, nil
	case field == fieldDisplayName && utf8.RuneCountInString(*s) > maxUserName:
		return nil, mxerr.InvalidParam("displayname is longer than 256 characters")
	case field == fieldAvatarURL && len(*s) > maxAvatarURL:
		return nil, mxerr.InvalidParam("avatar_url is longer than 1000 bytes")
	}
	return value, nil
}

// changeProfile sets a field, or deletes it if value is nil, and carries it into the user's rooms.
//
// Spec: client-server API v1.19, "Events on Change of Profile Information".
func (a *API) changeProfile(ctx context.Context, by *httpapi.Caller, in *changeFieldRequest, value json.RawMessage) error {
	if err := own(by, in.UserID); err != nil {
		return err
	}
	if by.Guest && in.Field != fieldDisplayName {
		return mxerr.New(http.StatusForbidden, "M_GUEST_ACCESS_FORBIDDEN", "Guests can change their display name only")
	}
	propagates := (in.Field == fieldDisplayName || in.Field == fieldAvatarURL) && in.Propagate == "true" && in.PropagateTo != "none"
	var id int64
	if propagates {
		var err error
		if id, err = a.jobIDs.Next(ctx); err != nil {
			return err
		}
	}
	queued := false
	err := a.db.Write(ctx, func(tx *storage.Tx) error {
		queued = false
		old, err := writeField(tx, in.UserID, in.Field, value)
		if err != nil || !propagates {
			return err
		}
		change := ProfileChange{Field: in.Field, Old: jsonString(old), New: jsonString(value), OnlyUnchanged: in.PropagateTo == "unchanged"}
		data, err := json.Marshal(change)
		if err != nil {
			return err
		}
		queued = true
		j := &job{id: id, userID: in.UserID, kind: jobProfile, data: data, nextTS: a.nowMS()}
		return j.write(tx)
	})
	if err != nil {
		return fmt.Errorf("change profile: %w", err)
	}
	if queued {
		a.awaitJob(ctx, id)
	}
	return nil
}

// awaitJob waits until a job is done, so that who was answered finds it done, but not for long.
func (a *API) awaitJob(ctx context.Context, id int64) {
	done, drop := a.jobs.await(id)
	defer drop()
	a.jobs.wake()
	timer := time.NewTimer(profilePatience)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
	case <-ctx.Done():
	}
}

// writeField sets or deletes (nil) a field and returns what it was. A profile must stay below 64 KiB.
func writeField(tx *storage.Tx, userID, field string, value json.RawMessage) (old json.RawMessage, err error) {
	if err := tx.Lock("profile " + userID); err != nil {
		return nil, err
	}
	if _, err := tx.Get(`SELECT value FROM profiles WHERE user_id = $1 AND field = $2`, []any{userID, field}, &old); err != nil {
		return nil, err
	}
	if bytes.Equal(old, value) {
		return old, nil
	}
	if err := noteProfileChange(tx, userID, field); err != nil {
		return nil, err
	}
	if value == nil {
		_, err := tx.Exec(`DELETE FROM profiles WHERE user_id = $1 AND field = $2`, userID, field)
		return old, err
	}
	size := int64(len(`{}`))
	_, err = tx.Get(`SELECT COALESCE(SUM(LENGTH(field) + LENGTH(value) + 4), 0) FROM profiles WHERE user_id = $1 AND field <> $2`,
		[]any{userID, field}, &size)
	if err != nil {
		return nil, err
	}
	if size+int64(len(field)+len(value)+len(`{"":}`)) >= maxProfile {
		return nil, mxerr.New(http.StatusBadRequest, "M_PROFILE_TOO_LARGE", "The profile would exceed 64 KiB")
	}
	_, err = tx.Exec(`INSERT INTO profiles (user_id, field, value) VALUES ($1, $2, $3) ON CONFLICT (user_id, field) DO UPDATE SET value = excluded.value`,
		userID, field, []byte(value))
	return old, err
}
