package mediaapi

import (
	"context"
	"encoding/json"
	"net/http"
	"time"

	"github.com/myelin-im/myelin/accounts"
	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/storage"
)

// linked are the endpoints of MSC3911, under its unstable prefix.
const linked = "/_matrix/client/unstable/org.matrix.msc3911/media"

const (
	// maxAttached bounds what one event has attached.
	maxAttached = 20
	// unattachedFor is how long restricted media may wait for an event.
	unattachedFor = 24 * time.Hour
)

var (
	errNotYours  = mxerr.New(http.StatusForbidden, "M_UNAUTHORIZED", "You cannot see what this media is attached to")
	errNoLinking = mxerr.Unrecognized(http.StatusNotFound)
	errAttached  = mxerr.InvalidParam("The media is attached to something already")
)

// restriction is what restricted media is attached to.
type restriction struct {
	attached       bool
	event, profile string
}

// restrictionOf returns nil for media that is for everybody.
func restrictionOf(tx *storage.Tx, u uri) (*restriction, error) {
	found, err := tx.Get(`SELECT 1 FROM media_restricted WHERE origin = $1 AND id = $2`, []any{u.origin, u.id}, new(int64))
	if err != nil || !found {
		return nil, err
	}
	r := new(restriction)
	r.attached, err = tx.Get(`SELECT event, profile FROM media_attachments WHERE origin = $1 AND id = $2`, []any{u.origin, u.id}, &r.event, &r.profile)
	return r, err
}

// restrict makes a URI restricted, attached to something if to is not nil.
func restrict(tx *storage.Tx, u uri, to *restriction) error {
	_, err := tx.Exec(`INSERT INTO media_restricted (origin, id) VALUES ($1, $2) ON CONFLICT DO NOTHING`, u.origin, u.id)
	if err == nil && to != nil {
		_, err = tx.Exec(`INSERT INTO media_attachments (origin, id, event, profile) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING`,
			u.origin, u.id, to.event, to.profile)
	}
	return err
}

// unrestrict forgets about a URI that is gone.
func unrestrict(tx *storage.Tx, u uri) error {
	_, err := tx.Exec(`DELETE FROM media_restricted WHERE origin = $1 AND id = $2`, u.origin, u.id)
	if err == nil {
		_, err = tx.Exec(`DELETE FROM media_attachments WHERE origin = $1 AND id = $2`, u.origin, u.id)
	}
	return err
}

// checkAccess refuses restricted media to those who do not see what it is attached to, and notes the restriction in req.
func (a *API) checkAccess(ctx context.Context, req *request, rec *record) error {
	var r *restriction
	err := a.db.Read(ctx, func(tx *storage.Tx) (err error) {
		if r, err = restrictionOf(tx, rec.uri); r == nil || r.attached || rec.uploader == "" || err != nil {
			return err
		}
		// What is shown as an avatar is attached to the profile.
		_, avatar, err := accounts.MemberProfile(tx, rec.uploader)
		if avatar == rec.String() {
			r.profile = rec.uploader
		}
		return err
	})
	if err != nil || r == nil {
		return err
	}
	req.restriction = r
	switch {
	case req.open:
		return errNotFound
	case r.profile != "", req.user != "" && req.user == rec.uploader:
		return nil
	case r.event == "" || a.sees == nil:
		return errNotYours
	}
	ok, err := a.sees(ctx, req.user, req.server, r.event)
	if err == nil && !ok {
		err = errNotYours
	}
	return err
}

// metadata is the first part of an answer to another server.
type metadata struct {
	Restrictions *restrictions `json:"restrictions,omitempty"`
}

type restrictions struct {
	EventID string `json:"event_id,omitempty"`
	Profile string `json:"profile_user_id,omitempty"`
}

// metadataOf says to other servers who may see media.
func metadataOf(r *restriction) string {
	if r == nil {
		return "{}"
	}
	raw, err := json.Marshal(metadata{&restrictions{r.event, r.profile}})
	if err != nil {
		return "{}" // strings can always be written
	}
	return string(raw)
}

// restrictionIn reads what another server says.
func restrictionIn(raw []byte) *restriction {
	var m metadata
	switch err := json.Unmarshal(raw, &m); {
	case err != nil:
		return &restriction{} // whatever it says, it is not nothing
	case m.Restrictions == nil:
		return nil
	case m.Restrictions.EventID != "" && m.Restrictions.Profile != "": // which is invalid
		return &restriction{}
	}
	return &restriction{event: m.Restrictions.EventID, profile: m.Restrictions.Profile}
}

// uploadRestricted: MSC3911, POST /media/upload.
func (a *API) uploadRestricted(ctx context.Context, by *httpapi.Caller, w http.ResponseWriter, r *http.Request) error {
	if !a.Linking {
		return errNoLinking
	}
	return a.uploadAs(ctx, by, w, r, true)
}

type copyRequest struct {
	Server string `path:"serverName"`
	ID     string `path:"mediaId"`
}

// copyMedia: MSC3911, POST /media/copy/{serverName}/{mediaId}. The copy is another URI for the same file.
func (a *API) copyMedia(ctx context.Context, by *httpapi.Caller, in *copyRequest) (*contentURI, error) {
	if !a.Linking {
		return nil, errNoLinking
	}
	if !isMediaID(in.ID) {
		return nil, errNotFound
	}
	rec, err := a.find(ctx, &request{uri: uri{in.Server, in.ID}, remote: true, user: by.UserID})
	if err != nil {
		return nil, err
	}
	if err := a.checkQuota(ctx, by.UserID, rec.size); err != nil {
		return nil, err
	}
	out := a.newRecord(uri{a.ServerName, newID()}, by.UserID)
	out.blob, out.size, out.typ, out.name, out.open = rec.blob, rec.size, rec.typ, rec.name, false
	err = a.db.Write(ctx, func(tx *storage.Tx) error {
		if err := lockBlob(tx, hashOf(rec.blob)); err != nil {
			return err
		}
		found, err := tx.Get(`SELECT size FROM media_blobs WHERE key = $1`, []any{rec.blob}, new(int64))
		switch {
		case err != nil:
			return err
		case !found:
			return errNotFound
		}
		if err := restrict(tx, out.uri, nil); err != nil {
			return err
		}
		return out.put(tx)
	})
	if err != nil {
		return nil, err
	}
	return &contentURI{URI: out.String()}, nil
}

// Attach returns what attaches media to an event that its uploader sends: to be added to the unit in which the event is
// written. It fails with 400 M_INVALID_PARAM if something is no restricted media of the user; the unit does if it is
// attached already.
func (a *API) Attach(ctx context.Context, userID string, uris []string) (func(u *storage.Unit, eventID string), error) {
	if !a.Linking || len(uris) > maxAttached {
		return nil, mxerr.InvalidParam("Media cannot be attached, or not so many")
	}
	list := make([]uri, len(uris))
	err := a.db.Read(ctx, func(tx *storage.Tx) error {
		for i, text := range uris {
			u, ok := parseURI(text)
			if !ok {
				return mxerr.InvalidParam("attach_media is no mxc URI")
			}
			rec, err := lookUp(tx, u)
			var r *restriction
			if err == nil {
				r, err = restrictionOf(tx, u)
			}
			if err != nil {
				return err
			}
			if rec == nil || r == nil || rec.uploader != userID {
				return mxerr.InvalidParam("attach_media is no media that you can attach")
			}
			list[i] = u
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return func(unit *storage.Unit, eventID string) {
		for _, u := range list {
			unit.Require(`INSERT INTO media_attachments (origin, id, event, profile) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING`,
				[]any{u.origin, u.id, eventID, ""}, 1, errAttached)
		}
	}, nil
}
