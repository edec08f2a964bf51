package mediaapi

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"time"
	"unicode/utf8"

	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/mediaapi/blob"
	"github.com/myelin-im/myelin/storage"
)

// newID makes an identifier that cannot be guessed.
func newID() string {
	var random [18]byte
	rand.Read(random[:])
	return base64.RawURLEncoding.EncodeToString(random[:])
}

// maxName bounds file names, in bytes.
const maxName = 1024

// fileName checks the name of an upload; nil if there is none.
func fileName(name string) (*string, error) {
	switch {
	case name == "":
		return nil, nil
	case len(name) > maxName || !utf8.ValidString(name):
		return nil, mxerr.InvalidParam("The file name is too long or not UTF-8")
	}
	return &name, nil
}

type contentURI struct {
	URI     string `json:"content_uri"`
	Expires int64  `json:"unused_expires_at,omitempty"`
}

// upload: client-server API v1.19, POST /upload.
func (a *API) upload(ctx context.Context, by *httpapi.Caller, w http.ResponseWriter, r *http.Request) error {
	return a.uploadAs(ctx, by, w, r, false)
}

// uploadAs stores the body of a request under a new URI, restricted or for everybody.
func (a *API) uploadAs(ctx context.Context, by *httpapi.Caller, w http.ResponseWriter, r *http.Request, restricted bool) error {
	name, err := fileName(r.URL.Query().Get("filename"))
	if err != nil {
		return err
	}
	if err := a.checkQuota(ctx, by.UserID, max(r.ContentLength, 0)); err != nil {
		return err
	}
	s, err := a.receive(r)
	if err != nil {
		return err
	}
	defer s.Close()
	rec := a.newRecord(uri{a.ServerName, newID()}, by.UserID)
	rec.name, rec.typ, rec.size = name, contentType(r.Header.Get("Content-Type"), s.Head()), s.Size()
	rec.open = rec.open && !restricted
	if err := a.keepUpload(ctx, s, rec, restricted); err != nil {
		return err
	}
	return writeJSON(w, contentURI{URI: rec.String()})
}

// newRecord is a record of something that is stored now.
func (a *API) newRecord(u uri, uploader string) *record {
	now := a.ms()
	return &record{uri: u, uploader: uploader, created: now, accessed: now, open: !a.Frozen}
}

// keepUpload stores what a user has uploaded.
func (a *API) keepUpload(ctx context.Context, s *blob.Spool, rec *record, restricted bool) error {
	if err := a.checkQuota(ctx, rec.uploader, s.Size()); err != nil {
		return err
	}
	err := a.keep(ctx, s, func(tx *storage.Tx, key string) error {
		if restricted {
			if err := restrict(tx, rec.uri, nil); err != nil {
				return err
			}
		}
		rec.blob = key
		return rec.put(tx)
	})
	if err == nil {
		a.makeEarly(rec)
	}
	return err
}

// receive spools the body of a request.
func (a *API) receive(r *http.Request) (*blob.Spool, error) {
	if r.ContentLength > a.MaxUpload {
		return nil, mxerr.TooLarge("The upload is larger than this server allows")
	}
	s, err := a.area.New()
	if err != nil {
		return nil, unlessFull(err)
	}
	_, err = s.ReadFrom(r.Body)
	switch {
	case err == nil:
		return s, nil
	case mxerr.As(err) != nil: // too large
	case errors.Is(err, io.ErrUnexpectedEOF) || r.Context().Err() != nil || isTimeout(err):
		err = mxerr.New(http.StatusRequestTimeout, "M_UNKNOWN", "The upload did not arrive").With(err)
	}
	return nil, errors.Join(unlessFull(err), s.Close())
}

func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout()
}

// checkQuota refuses more bytes of a user than they may store.
func (a *API) checkQuota(ctx context.Context, userID string, more int64) error {
	if a.Quota == 0 {
		return nil
	}
	var used int64
	err := a.db.Read(ctx, func(tx *storage.Tx) (err error) {
		_, err = tx.Get(`SELECT CAST(coalesce(sum(size), 0) AS BIGINT) FROM media WHERE uploader = $1`, []any{userID}, &used)
		return err
	})
	if err == nil && used+more > a.Quota {
		err = mxerr.Forbidden("You have reached the quota for uploaded content")
	}
	return err
}

// create: client-server API v1.19, POST /create.
func (a *API) create(ctx context.Context, by *httpapi.Caller, _ *httpapi.Empty) (*contentURI, error) {
	rec := a.newRecord(uri{a.ServerName, newID()}, by.UserID)
	rec.expires = rec.created + a.PendingFor.Milliseconds()
	err := a.db.Write(ctx, func(tx *storage.Tx) error {
		var n, first int64
		_, err := tx.Get(`SELECT count(*), coalesce(min(expires), 0) FROM media WHERE uploader = $1 AND blob IS NULL AND expires > $2`,
			[]any{by.UserID, rec.created}, &n, &first)
		if err != nil {
			return err
		}
		if n >= int64(a.MaxPending) {
			return mxerr.LimitExceeded(time.Duration(first-rec.created) * time.Millisecond)
		}
		return rec.put(tx)
	})
	if err != nil {
		return nil, err
	}
	return &contentURI{rec.String(), rec.expires}, nil
}

// pending returns the record of a URI that a user has created and may upload to.
func (a *API) pending(ctx context.Context, by *httpapi.Caller, u uri) (*record, error) {
	rec, err := a.lookUp(ctx, u)
	if err != nil {
		return nil, err
	}
	return rec, a.mayUpload(by, rec)
}

func (a *API) mayUpload(by *httpapi.Caller, rec *record) error {
	switch {
	case rec == nil || rec.origin != a.ServerName:
		return mxerr.NotFound("Unknown media ID")
	case rec.uploader != by.UserID:
		return mxerr.Forbidden("Somebody else has created this media ID")
	case rec.blob != "":
		return mxerr.New(http.StatusConflict, "M_CANNOT_OVERWRITE_MEDIA", "Media already uploaded")
	case rec.expires <= a.ms():
		return mxerr.NotFound("The media ID has expired")
	}
	return nil
}

// uploadTo: client-server API v1.19, PUT /upload/{serverName}/{mediaId}.
func (a *API) uploadTo(ctx context.Context, by *httpapi.Caller, w http.ResponseWriter, r *http.Request) error {
	name, err := fileName(r.URL.Query().Get("filename"))
	if err != nil {
		return err
	}
	u := uri{r.PathValue("serverName"), r.PathValue("mediaId")}
	if _, err := a.pending(ctx, by, u); err != nil {
		return err
	}
	s, err := a.receive(r)
	if err != nil {
		return err
	}
	defer s.Close()
	if err := a.complete(ctx, by, u, s, name, r.Header.Get("Content-Type")); err != nil {
		return err
	}
	return writeJSON(w, httpapi.Empty{})
}

// complete gives a created URI its content.
func (a *API) complete(ctx context.Context, by *httpapi.Caller, u uri, s *blob.Spool, name *string, typ string) error {
	if err := a.checkQuota(ctx, by.UserID, s.Size()); err != nil {
		return err
	}
	now := a.newRecord(u, by.UserID)
	now.size, now.name, now.typ = s.Size(), name, contentType(typ, s.Head())
	err := a.keep(ctx, s, func(tx *storage.Tx, key string) error {
		if err := tx.Lock("media " + u.String()); err != nil {
			return err
		}
		rec, err := lookUp(tx, u)
		if err == nil {
			err = a.mayUpload(by, rec)
		}
		if err != nil {
			return err
		}
		now.blob = key
		return now.put(tx)
	})
	if err != nil {
		// The content may be stored and nobody refer to it: another upload was faster.
		return errors.Join(err, a.dropContent(ctx, s.Hash()))
	}
	a.waiting.arrived(u)
	a.makeEarly(now)
	return nil
}

// dropContent removes content that nothing refers to.
func (a *API) dropContent(ctx context.Context, hash []byte) error {
	var key string
	var found bool
	ctx = context.WithoutCancel(ctx)
	err := a.db.Read(ctx, func(tx *storage.Tx) (err error) {
		found, err = tx.Get(`SELECT key FROM media_blobs WHERE hash = $1`, []any{hash}, &key)
		return err
	})
	if err != nil || !found {
		return err
	}
	return a.dropBlobs(ctx, []string{key})
}

// writeJSON answers with JSON.
func writeJSON(w http.ResponseWriter, out any) error {
	body, err := json.Marshal(out)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	_, err = w.Write(body)
	return err
}
