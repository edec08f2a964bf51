package mediaapi

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/mediaapi/blob"
	"github.com/myelin-im/myelin/mediaapi/thumbnail"
	"github.com/myelin-im/myelin/storage"
)

// Thumbnails is what the operator decides about them.
type Thumbnails struct {
	// MaxPixels bounds the pictures of which thumbnails are made, MaxFrames their animations.
	MaxPixels int64
	MaxFrames int
	// Workers is how many are made at the same time.
	Workers int
	// Early are the thumbnails that are made of every uploaded picture at once.
	Early []thumbnail.Spec
	// FFmpeg is a program that finds a picture in videos, AVIF and HEIC; empty: there is none.
	FFmpeg string
}

const (
	// maxSide bounds what may be asked for, in pixels; more is taken for this.
	maxSide = 4096
	// maxVariants is how many different thumbnails of one picture are kept. Others are made again each time.
	maxVariants = 40
	// thumbnailTime bounds the work for one.
	thumbnailTime = 30 * time.Second
	// thumbnailQueue is how many may wait for a worker.
	thumbnailQueue = 200
)

var (
	errNoThumbnail   = mxerr.New(http.StatusBadRequest, "M_UNKNOWN", "Cannot generate thumbnails for the requested content")
	errPictureTooBig = mxerr.TooLarge("Content is too large to thumbnail")
)

// specOf reads what kind of thumbnail is asked for.
func specOf(r *http.Request) (thumbnail.Spec, error) {
	q := r.URL.Query()
	side := func(name string) (int, error) {
		text := q.Get(name)
		if text == "" {
			return 0, mxerr.MissingParam("Missing parameter " + name)
		}
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			return 0, mxerr.InvalidParam(name + " is not a positive number")
		}
		return min(n, maxSide), nil
	}
	s := thumbnail.Spec{Crop: q.Get("method") == "crop", Animated: q.Get("animated") == "true"}
	var err error
	if s.Width, err = side("width"); err != nil {
		return s, err
	}
	if s.Height, err = side("height"); err != nil {
		return s, err
	}
	if method := q.Get("method"); method != "" && method != "crop" && method != "scale" {
		return s, mxerr.InvalidParam("method is neither crop nor scale")
	}
	return s, nil
}

// thumbnail: client-server API v1.19, GET /media/thumbnail/{serverName}/{mediaId}.
func (a *API) thumbnail(ctx context.Context, by *httpapi.Caller, w http.ResponseWriter, r *http.Request) error {
	return a.serveThumbnail(ctx, by, w, r, false)
}

// thumbnailOpen is the same without authentication.
func (a *API) thumbnailOpen(ctx context.Context, _ *httpapi.Caller, w http.ResponseWriter, r *http.Request) error {
	return a.serveThumbnail(ctx, nil, w, r, true)
}

func (a *API) serveThumbnail(ctx context.Context, by *httpapi.Caller, w http.ResponseWriter, r *http.Request, open bool) error {
	req, err := parse(r, open)
	if err != nil {
		return err
	}
	spec, err := specOf(r)
	if err != nil {
		return err
	}
	if by != nil {
		req.user = by.UserID
	}
	rec, err := a.find(ctx, req)
	if err != nil {
		return err
	}
	a.touched.add(rec, a.ms())
	t, err := a.thumbnailOf(ctx, rec, spec)
	if err != nil {
		return err
	}
	c := content{t.key, t.typ, t.disposition(), req.redirect}
	if t.data == nil {
		return a.serve(ctx, w, r, c)
	}
	c.headers(w.Header())
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(t.data))
	return nil
}

// small is a thumbnail: a blob, or one that was not kept.
type small struct {
	key, typ string
	size     int64
	data     []byte
}

func (t *small) disposition() string {
	name := "thumbnail." + strings.TrimPrefix(t.typ, "image/")
	return disposition(t.typ, &name)
}

// variant is a thumbnail of a blob.
type variant struct {
	blob string
	thumbnail.Spec
}

func method(s thumbnail.Spec) string {
	if s.Crop {
		return "crop"
	}
	return "scale"
}

// thumbnailOf returns a thumbnail of a record, made before or now.
func (a *API) thumbnailOf(ctx context.Context, rec *record, spec thumbnail.Spec) (*small, error) {
	v := variant{rec.blob, spec}
	t, err := a.madeBefore(ctx, v)
	if err != nil || t != nil {
		return t, err
	}
	t, err = a.making.do(a.life, ctx, v, func(ctx context.Context) (*small, error) {
		entered, err := a.workers.enter(ctx)
		if err != nil {
			return nil, err
		}
		if !entered {
			return nil, mxerr.LimitExceeded(5 * time.Second)
		}
		defer a.workers.leave()
		ctx, cancel := context.WithTimeout(ctx, thumbnailTime)
		defer cancel()
		return a.makeThumbnail(ctx, v, rec.typ)
	})
	switch {
	case errors.Is(err, thumbnail.ErrTooLarge) && rec.origin != a.ServerName:
		return nil, mxerr.New(http.StatusBadGateway, "M_TOO_LARGE", "Content is too large to thumbnail")
	case errors.Is(err, thumbnail.ErrTooLarge), errors.Is(err, context.DeadlineExceeded):
		return nil, errPictureTooBig.With(err)
	case errors.Is(err, thumbnail.ErrUnsupported):
		return nil, errNoThumbnail.With(err)
	case errors.Is(err, blob.ErrNotFound):
		return nil, errNotFound.With(err)
	}
	return t, unlessFull(err)
}

func (a *API) madeBefore(ctx context.Context, v variant) (*small, error) {
	t, found := &small{}, false
	err := a.db.Read(ctx, func(tx *storage.Tx) (err error) {
		found, err = tx.Get(`SELECT data, type, size FROM media_thumbnails WHERE blob = $1 AND width = $2 AND height = $3 AND method = $4 AND animated = $5`,
			[]any{v.blob, v.Width, v.Height, method(v.Spec), v.Animated}, &t.key, &t.typ, &t.size)
		return err
	})
	if err != nil || !found {
		return nil, err
	}
	return t, nil
}

// makeThumbnail makes and keeps a thumbnail.
func (a *API) makeThumbnail(ctx context.Context, v variant, typ string) (*small, error) {
	o, err := a.store.Open(ctx, v.blob)
	if err != nil {
		return nil, err
	}
	defer o.Close()
	limits := thumbnail.Limits{Pixels: a.Thumbnails.MaxPixels, Frames: a.Thumbnails.MaxFrames}
	r, err := thumbnail.Make(ctx, o, v.Spec, limits)
	if errors.Is(err, thumbnail.ErrOriginal) {
		info, err := thumbnail.Probe(o)
		if err != nil {
			return nil, err
		}
		t := &small{key: v.blob, typ: info.Type}
		return t, a.noteThumbnail(ctx, v, t)
	}
	if errors.Is(err, thumbnail.ErrUnsupported) && a.Thumbnails.FFmpeg != "" && hasPicture(typ) {
		r, err = a.frameOf(ctx, o, v.Spec, limits)
	}
	if err != nil {
		return nil, err
	}
	return a.keepThumbnail(ctx, v, r)
}

// keepThumbnail stores a thumbnail, unless there are too many of its picture.
func (a *API) keepThumbnail(ctx context.Context, v variant, r *thumbnail.Result) (*small, error) {
	var others int64
	err := a.db.Read(ctx, func(tx *storage.Tx) error {
		_, err := tx.Get(`SELECT count(*) FROM media_thumbnails WHERE blob = $1`, []any{v.blob}, &others)
		return err
	})
	if err != nil {
		return nil, err
	}
	s, err := a.area.New()
	if err != nil {
		return nil, err
	}
	defer s.Close()
	if _, err := s.Write(r.Data); err != nil {
		return nil, fmt.Errorf("write a thumbnail: %w", err)
	}
	t := &small{typ: r.Type, size: s.Size()}
	if others >= maxVariants {
		t.key, t.data = blob.NewKey(s.Hash()), r.Data
		return t, nil
	}
	err = a.keep(ctx, s, func(tx *storage.Tx, key string) error {
		t.key = key
		return putThumbnail(tx, v, t)
	})
	return t, err
}

// noteThumbnail remembers that a picture is its own thumbnail.
func (a *API) noteThumbnail(ctx context.Context, v variant, t *small) error {
	return a.db.Write(ctx, func(tx *storage.Tx) error {
		if _, err := tx.Get(`SELECT size FROM media_blobs WHERE key = $1`, []any{v.blob}, &t.size); err != nil {
			return err
		}
		return putThumbnail(tx, v, t)
	})
}

// putThumbnail writes a row, unless the picture is gone.
func putThumbnail(tx *storage.Tx, v variant, t *small) error {
	_, err := tx.Exec(`INSERT INTO media_thumbnails (blob, width, height, method, animated, type, size, data)
		SELECT $1, $2, $3, $4, $5, $6, $7, $8 FROM media_blobs WHERE key = $1 ON CONFLICT DO NOTHING`,
		v.blob, v.Width, v.Height, method(v.Spec), v.Animated, t.typ, t.size, t.key)
	return err
}

// makeEarly makes the thumbnails that are made of every picture, in the background. When there is too much to do,
// they are made when somebody asks for them.
func (a *API) makeEarly(rec *record) {
	if len(a.Thumbnails.Early) == 0 || !strings.HasPrefix(rec.typ, "image/") {
		return
	}
	select {
	case a.early <- rec:
	default:
	}
}

// workEarly runs until ctx ends.
func (a *API) workEarly(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case rec := <-a.early:
			for _, spec := range a.Thumbnails.Early {
				if _, err := a.thumbnailOf(ctx, rec, spec); err != nil {
					a.log.WithError(err).Debug("no thumbnail of an upload")
					break
				}
			}
		}
	}
}
