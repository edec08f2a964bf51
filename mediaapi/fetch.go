package mediaapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/myelin-im/myelin/federation/client"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/mediaapi/blob"
	"github.com/myelin-im/myelin/storage"
)

const (
	// fetchTime bounds the fetch of one file.
	fetchTime = 10 * time.Minute
	// fetchStart is how long an origin may take before it sends anything, which includes its waiting for an upload.
	fetchStart = 45 * time.Second
	// fetches and fetchQueue bound how many files are fetched at the same time and wait for that.
	fetches, fetchQueue = 30, 1000
	// failureFor is how long an origin is not asked again for what it did not give.
	failureFor = time.Minute
	// maxFailures bounds how many failures are remembered.
	maxFailures = 10_000
)

var (
	errUnreachable = mxerr.NotFound("The media could not be fetched from its server")
	errRemoteSize  = mxerr.New(http.StatusBadGateway, "M_TOO_LARGE", "Content is too large to serve")
	errLying       = errors.New("the origin sent something else than it announced")
)

// fetch gets media from its origin, once for all who ask at the same time.
func (a *API) fetch(ctx context.Context, req *request) (*record, error) {
	if a.servers == nil {
		return nil, errUnreachable
	}
	if err := a.failures.get(req.uri, a.now()); err != nil {
		return nil, err
	}
	return a.fetching.do(a.life, ctx, req.uri, func(ctx context.Context) (*record, error) {
		entered, err := a.fetchers.enter(ctx)
		if err != nil {
			return nil, err
		}
		if !entered {
			return nil, mxerr.LimitExceeded(10 * time.Second)
		}
		defer a.fetchers.leave()
		// Who has waited for a flight that just ended may be late.
		if rec, err := a.lookUp(ctx, req.uri); err != nil || rec != nil {
			return rec, err
		}
		ctx, cancel := context.WithTimeout(ctx, fetchTime)
		defer cancel()
		rec, err := a.fetchNow(ctx, req.uri)
		if err != nil {
			a.log.WithError(err).WithField("server", req.origin).Debug("could not fetch media")
			err = fetchError(err)
			a.failures.put(req.uri, err, a.now())
		}
		return rec, err
	})
}

// fetchError is what a client is told of a failure.
func fetchError(err error) error {
	var answer *client.Error
	switch {
	case errors.As(err, &answer) && answer.Code == "M_NOT_YET_UPLOADED":
		return errNotYet
	case errors.As(err, &answer) && answer.Code == "M_TOO_LARGE":
		return errRemoteSize
	case errors.As(err, &answer) && answer.Status == http.StatusTooManyRequests:
		return mxerr.LimitExceeded(max(answer.RetryAfter, time.Second))
	case errors.As(err, &answer) && answer.Status == http.StatusNotFound:
		return errNotFound
	case mxerr.As(err) != nil:
		return err
	case blob.IsFull(err):
		return errFull.With(err)
	}
	return errUnreachable.With(err)
}

// remote is a file on its way from its origin.
type remote struct {
	body        io.Reader
	closer      io.Closer // ends the request
	typ         string
	disposition string
	length      int64 // as announced; negative: not at all
	restriction *restriction
	bounded     bool // something was announced that net/http holds the origin to
}

// fetchNow gets media from its origin and keeps it.
func (a *API) fetchNow(ctx context.Context, u uri) (*record, error) {
	one, leave := a.lives.join(u)
	defer leave()
	rec, err := a.fetchInto(ctx, u, one)
	one.finish(err)
	return rec, err
}

// name is the name that the origin gives the file, nil if none.
func (r *remote) name() *string {
	_, params, err := mime.ParseMediaType(r.disposition)
	if err != nil {
		return nil
	}
	name, err := fileName(params["filename"])
	if err != nil {
		return nil
	}
	return name
}

func (a *API) fetchInto(ctx context.Context, u uri, one *live) (*record, error) {
	file, err := a.open(ctx, u)
	if err != nil {
		return nil, err
	}
	defer file.closer.Close()
	s, err := a.spoolRemote(file, a.MaxRemote, func(s *blob.Spool) {
		if !file.bounded || file.restriction != nil { // nobody has asked yet who may see it
			return
		}
		one.change(func() {
			one.file, one.path, one.typ, one.n = file, s.Path(), contentType(file.typ, s.Head()), s.Size()
		})
	})
	if err != nil {
		return nil, err
	}
	defer s.Close()
	rec := a.newRecord(u, "")
	rec.size, rec.typ, rec.name = s.Size(), contentType(file.typ, s.Head()), file.name()
	err = a.keep(ctx, s, func(tx *storage.Tx, key string) error {
		if file.restriction != nil {
			rec.open = false
			if err := restrict(tx, u, file.restriction); err != nil {
				return err
			}
		}
		rec.blob = key
		return rec.put(tx)
	})
	return rec, err
}

// spoolRemote reads a file, within the bound and what was announced. Who follows is told how far it is.
func (a *API) spoolRemote(file *remote, limit int64, follow func(s *blob.Spool)) (*blob.Spool, error) {
	if file.length > limit {
		return nil, errRemoteSize
	}
	s, err := a.area.New()
	if err != nil {
		return nil, err
	}
	if follow != nil {
		s.Tell(func(int64) { follow(s) })
	}
	n, err := s.ReadFrom(io.LimitReader(file.body, limit+1))
	switch {
	case err != nil:
	case n > limit:
		err = errRemoteSize
	case file.length >= 0 && n != file.length:
		err = errLying
	}
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// open asks the origin: the authenticated endpoint, or the old one where that is not known.
// spec: server-server-api v1.19 "Content Repository"
func (a *API) open(ctx context.Context, u uri) (*remote, error) {
	res, err := a.servers.Stream(ctx, client.Request{Server: u.origin, Method: "GET", Timeout: fetchStart,
		Path: client.Path("/_matrix/federation/v1/media/download/%s", u.id) + "?timeout_ms=20000"})
	var answer *client.Error
	if errors.As(err, &answer) && unknown(answer) {
		return a.openOld(ctx, u)
	}
	if err != nil {
		return nil, err
	}
	a.pace.hold(res)
	file, err := a.openParts(ctx, res)
	if err != nil {
		return nil, errors.Join(err, res.Body.Close())
	}
	return file, nil
}

// unknown tells whether a server does not know the endpoint. What is no error of Matrix was not said by it.
func unknown(answer *client.Error) bool {
	return answer.Code == "M_UNRECOGNIZED" || answer.Code == "" && answer.Status >= 400 && answer.Status < 500
}

// openOld asks a server that knows the unauthenticated endpoint alone.
func (a *API) openOld(ctx context.Context, u uri) (*remote, error) {
	//nolint:bodyclose // whoever takes the file closes it
	res, err := a.servers.Stream(ctx, client.Request{Server: u.origin, Method: "GET", Timeout: fetchStart, Unsigned: true,
		Path: client.Path("/_matrix/media/v3/download/%s/%s", u.origin, u.id) + "?allow_remote=false&timeout_ms=20000"})
	if err != nil {
		return nil, err
	}
	a.pace.hold(res)
	return fileOf(res), nil
}

// fileOf takes the body of an answer for a file.
func fileOf(res *http.Response) *remote {
	return &remote{res.Body, res.Body, res.Header.Get("Content-Type"), res.Header.Get("Content-Disposition"), res.ContentLength, nil, res.ContentLength >= 0}
}

// maxMetadata bounds the first part of an answer, in bytes.
const maxMetadata = 64 << 10

// openParts reads an answer of two parts up to the content of the second.
func (a *API) openParts(ctx context.Context, res *http.Response) (*remote, error) {
	if res.ContentLength > a.MaxRemote+2*maxMetadata {
		return nil, errRemoteSize
	}
	typ, params, err := mime.ParseMediaType(res.Header.Get("Content-Type"))
	if err != nil || typ != "multipart/mixed" || params["boundary"] == "" {
		return nil, fmt.Errorf("%w: the answer is not multipart/mixed", errLying)
	}
	parts := multipart.NewReader(res.Body, params["boundary"])
	first, err := parts.NextRawPart()
	if err != nil {
		return nil, fmt.Errorf("read the first part: %w", err)
	}
	metadata, err := io.ReadAll(io.LimitReader(first, maxMetadata+1))
	if err != nil || len(metadata) > maxMetadata {
		return nil, fmt.Errorf("%w: the first part has %d bytes: %w", errLying, len(metadata), err)
	}
	restricted := restrictionIn(metadata)
	second, err := parts.NextRawPart()
	if err != nil {
		return nil, fmt.Errorf("read the second part: %w", err)
	}
	if location := second.Header.Get("Location"); location != "" {
		elsewhere, err := a.web.Get(ctx, location, nil)
		if err != nil {
			return nil, fmt.Errorf("follow the redirect: %w", err)
		}
		if elsewhere.StatusCode != http.StatusOK {
			return nil, errors.Join(fmt.Errorf("the redirect leads to status %d", elsewhere.StatusCode), elsewhere.Body.Close())
		}
		a.pace.hold(elsewhere)
		file := fileOf(elsewhere)
		file.restriction = restricted
		return file, res.Body.Close()
	}
	length := int64(-1)
	if n, err := strconv.ParseInt(second.Header.Get("Content-Length"), 10, 64); err == nil && n >= 0 {
		length = n
	}
	return &remote{second, res.Body, second.Header.Get("Content-Type"), second.Header.Get("Content-Disposition"), length, restricted, res.ContentLength >= 0}, nil
}

// failures remembers for a while what could not be fetched.
type failures struct {
	mu   sync.Mutex
	list map[uri]failure
}

type failure struct {
	err   error
	until time.Time
}

func (f *failures) get(u uri, now time.Time) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	one, ok := f.list[u]
	if !ok {
		return nil
	}
	if now.After(one.until) {
		delete(f.list, u)
		return nil
	}
	return one.err
}

func (f *failures) put(u uri, err error, now time.Time) {
	if errors.Is(err, context.Canceled) || errors.Is(err, errNotYet) {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.list == nil || len(f.list) >= maxFailures {
		f.list = map[uri]failure{}
	}
	f.list[u] = failure{err, now.Add(failureFor)}
}
