package mediaapi

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/mediaapi/blob"
	"github.com/myelin-im/myelin/storage"
)

// request is what downloads and thumbnails have in common.
type request struct {
	uri
	open     bool          // an unauthenticated endpoint
	remote   bool          // other servers may be asked
	redirect bool          // the client may be sent elsewhere
	wait     time.Duration // for content that is still being uploaded

	user, server string       // who asks
	restriction  *restriction // what the media is attached to, if it is restricted

	follow bool      // the answer may begin before everything has been fetched
	live   *follower // then find sets this and no record, and what ends the reading
	leave  func()
}

// Bounds of timeout_ms.
const (
	defaultWait = 20 * time.Second
	maxWait     = time.Minute
)

// parse reads what is in the path and the query. Parameters that are not understood have their defaults, except for
// numbers, which must be some.
func parse(r *http.Request, open bool) (*request, error) {
	q := r.URL.Query()
	req := &request{uri: uri{r.PathValue("serverName"), r.PathValue("mediaId")}, open: open, remote: true, redirect: !open, wait: defaultWait}
	if !isMediaID(req.id) {
		return nil, errNotFound
	}
	if text := q.Get("timeout_ms"); text != "" {
		ms, err := strconv.ParseInt(text, 10, 64)
		if err != nil || ms < 0 {
			return nil, mxerr.InvalidParam("timeout_ms is not a number of milliseconds")
		}
		req.wait = time.Duration(min(ms, maxWait.Milliseconds())) * time.Millisecond
	}
	if open {
		req.remote, req.redirect = q.Get("allow_remote") != "false", q.Get("allow_redirect") == "true"
	}
	return req, nil
}

// download: client-server API v1.19, GET /media/download/{serverName}/{mediaId} and with {fileName}.
func (a *API) download(ctx context.Context, by *httpapi.Caller, w http.ResponseWriter, r *http.Request) error {
	return a.serveDownload(ctx, by, w, r, false)
}

// downloadOpen is the same without authentication, for what was stored while that was allowed.
func (a *API) downloadOpen(ctx context.Context, _ *httpapi.Caller, w http.ResponseWriter, r *http.Request) error {
	return a.serveDownload(ctx, nil, w, r, true)
}

func (a *API) serveDownload(ctx context.Context, by *httpapi.Caller, w http.ResponseWriter, r *http.Request, open bool) error {
	req, err := parse(r, open)
	if err != nil {
		return err
	}
	if by != nil {
		req.user = by.UserID
	}
	name, err := fileName(r.PathValue("fileName"))
	if err != nil {
		return err
	}
	req.follow = a.follows(req, by, r)
	rec, err := a.find(ctx, req)
	if err != nil {
		return err
	}
	if req.live != nil {
		defer req.leave()
		return a.serveLive(ctx, w, req.live, name)
	}
	if name == nil {
		name = rec.name
	}
	a.touched.add(rec, a.ms())
	return a.serve(ctx, w, r, content{rec.blob, rec.typ, disposition(rec.typ, name), req.redirect})
}

// find returns the record of what is asked for, with content.
func (a *API) find(ctx context.Context, req *request) (*record, error) {
	rec, err := a.lookUp(ctx, req.uri)
	switch {
	case err != nil:
		return nil, err
	case req.origin == a.ServerName && rec != nil && rec.blob == "":
		rec, err = a.await(ctx, req)
	case req.origin != a.ServerName && rec == nil && req.remote && req.follow:
		rec, req.live, req.leave, err = a.fetchOrFollow(ctx, req)
		if req.live != nil {
			return nil, nil
		}
	case req.origin != a.ServerName && rec == nil && req.remote:
		rec, err = a.fetch(ctx, req)
	}
	if err != nil {
		return nil, err
	}
	if rec == nil || rec.quarantined != nil || req.open && !rec.open {
		return nil, errNotFound
	}
	return rec, a.checkAccess(ctx, req, rec)
}

var errNotYet = mxerr.New(http.StatusGatewayTimeout, "M_NOT_YET_UPLOADED", "Content has not yet been uploaded")

// again is how often await looks, should another node have got the upload.
const again = 2 * time.Second

// await waits for the content of a URI that was created.
func (a *API) await(ctx context.Context, req *request) (*record, error) {
	arrived, leave := a.waiting.join(req.uri)
	defer leave()
	late := time.NewTimer(req.wait)
	defer late.Stop()
	look := time.NewTicker(again)
	defer look.Stop()
	for over := false; ; {
		rec, err := a.lookUp(ctx, req.uri)
		switch {
		case err != nil:
			return nil, err
		case rec == nil || rec.blob == "" && rec.expires <= a.ms():
			return nil, errNotFound
		case rec.blob != "":
			return rec, nil
		case over:
			return nil, errNotYet
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-a.life.Done():
			over = true
		case <-late.C:
			over = true
		case <-arrived:
			arrived = nil
		case <-look.C:
		}
	}
}

// arrivals lets requests wait for uploads.
type arrivals struct {
	mu   sync.Mutex
	list map[uri]*arrival
}

type arrival struct {
	done    chan struct{}
	waiting int
}

// join returns a channel that is closed when the content is there.
func (l *arrivals) join(u uri) (done <-chan struct{}, leave func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.list == nil {
		l.list = map[uri]*arrival{}
	}
	w := l.list[u]
	if w == nil {
		w = &arrival{done: make(chan struct{})}
		l.list[u] = w
	}
	w.waiting++
	return w.done, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if w.waiting--; w.waiting == 0 && l.list[u] == w {
			delete(l.list, u)
		}
	}
}

func (l *arrivals) arrived(u uri) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if w := l.list[u]; w != nil {
		close(w.done)
		delete(l.list, u)
	}
}

// content is something to serve.
type content struct {
	key, typ, disposition string
	redirect              bool
}

// redirectFor is how long the URL of a redirect works: longer than the slowest start, and no longer.
const redirectFor = 5 * time.Minute

// serve sends a blob or a part of it. Content never changes, so its hash is its ETag.
func (a *API) serve(ctx context.Context, w http.ResponseWriter, r *http.Request, c content) error {
	h := w.Header()
	if c.redirect {
		url, err := a.store.URL(ctx, c.key, blob.Link{Type: c.typ, Disposition: c.disposition, For: redirectFor})
		if err != nil {
			return err
		}
		if url != "" {
			h.Set("Location", url)
			h.Set("Cache-Control", "no-store")
			w.WriteHeader(http.StatusTemporaryRedirect)
			return nil
		}
	}
	o, err := a.store.Open(ctx, c.key)
	if errors.Is(err, blob.ErrNotFound) {
		return errNotFound.With(err)
	}
	if err != nil {
		return err
	}
	defer o.Close()
	c.headers(h)
	http.ServeContent(w, r, "", time.Time{}, o)
	return nil
}

// headers are those of an answer with the content.
func (c content) headers(h http.Header) {
	protect(h)
	h.Set("Content-Type", c.typ)
	h.Set("Content-Disposition", c.disposition)
	h.Set("ETag", `"`+c.key[:64]+`"`)
	// Content does not change, but it may be quarantined: after an hour, clients ask whether it is still to be had.
	h.Set("Cache-Control", "private, max-age=3600")
}

// touches notes when media was last asked for, in memory; writeTouches writes it down once in a while.
type touches struct {
	mu   sync.Mutex
	list map[uri]int64
}

const (
	// touchEvery is how exact the time of the last access is, in milliseconds.
	touchEvery = int64(time.Hour / time.Millisecond)
	// touchLimit bounds what waits to be written; more is forgotten.
	touchLimit = 10_000
)

func (t *touches) add(r *record, now int64) {
	if now-r.accessed < touchEvery {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.list == nil {
		t.list = map[uri]int64{}
	}
	if len(t.list) < touchLimit {
		t.list[r.uri] = now
	}
}

func (t *touches) take() map[uri]int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	list := t.list
	t.list = nil
	return list
}

func (a *API) writeTouches(ctx context.Context) {
	tick := time.NewTicker(time.Minute)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			a.flushTouches()
			return
		case <-tick.C:
			a.flushTouches()
		}
	}
}

func (a *API) flushTouches() {
	list := a.touched.take()
	if len(list) == 0 {
		return
	}
	err := a.db.Write(context.Background(), func(tx *storage.Tx) error {
		for u, at := range list {
			if _, err := tx.Exec(`UPDATE media SET accessed = $1 WHERE origin = $2 AND id = $3 AND accessed < $1`, at, u.origin, u.id); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		a.log.WithError(err).Warn("could not note which media was used")
	}
}
