package mediaapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/internal/publicnet"
	"github.com/myelin-im/myelin/mediaapi/outbound"
	"github.com/myelin-im/myelin/mediaapi/preview"
	"github.com/myelin-im/myelin/mediaapi/thumbnail"
	"github.com/myelin-im/myelin/storage"
)

// Previews is what the operator decides about previews of URLs.
type Previews struct {
	// Enabled lets users ask for them.
	Enabled bool
	// AllowPrivate lets pages be on loopback and private addresses.
	AllowPrivate bool
	// Deny and Allow are patterns of host names, as in outbound.Config.
	Deny, Allow []string
	// Keep is how long a preview is not made again.
	Keep time.Duration
	// MaxImage bounds their pictures, in bytes.
	MaxImage int64
	// Robots makes it follow robots.txt.
	Robots bool
	// Languages is the Accept-Language that is sent.
	Languages string
}

const (
	// robot is how robots.txt and logs of others know us.
	robot     = "Myelin"
	userAgent = "Mozilla/5.0 (compatible; " + robot + "; Matrix URL preview bot)"
	// maxPage, maxRobots: how much is read, in bytes.
	maxPage, maxRobots = 2 << 20, 256 << 10
	// previewTime bounds the making of one.
	previewTime = 25 * time.Second
	// previewing and previewQueue bound how many are made at the same time and wait for that.
	previewing, previewQueue = 10, 200
	// keepFailure is how long a failure is remembered.
	keepFailure = 5 * time.Minute
	// robotsFor is how long the rules of a site are remembered, of at most maxSites.
	robotsFor = time.Hour
	maxSites  = 1000
)

var errNoPreview = mxerr.NotFound("The page could not be fetched")

type previewRequest struct {
	URL string `query:"url" required:"true"`
	TS  *int64 `query:"ts"`
}

// previewAnswer is JSON as it was made.
type previewAnswer []byte

// AppendJSON appends it.
func (p previewAnswer) AppendJSON(dst []byte) ([]byte, error) { return append(dst, p...), nil }

// preview: client-server API v1.19, GET /media/preview_url. Pages are shown as they are now: ts is the past, of which
// nothing is known.
func (a *API) preview(ctx context.Context, _ *httpapi.Caller, in *previewRequest) (*previewAnswer, error) {
	if !a.Previews.Enabled {
		return nil, mxerr.Forbidden("URL previews are disabled on this server") // MSC4452
	}
	u, err := url.Parse(in.URL)
	if err != nil || len(in.URL) > 4096 {
		return nil, mxerr.InvalidParam("url is no URL")
	}
	u.Fragment, u.RawFragment = "", ""
	if err := a.pages.Check(u); err != nil {
		return nil, mxerr.Forbidden("This URL cannot be previewed").With(err)
	}
	key := u.String()
	if known, err := a.knownPreview(ctx, key); err != nil || known != nil {
		return known, err
	}
	return a.previewing.do(a.life, ctx, key, func(ctx context.Context) (*previewAnswer, error) {
		entered, err := a.previewers.enter(ctx)
		if err != nil {
			return nil, err
		}
		if !entered {
			return nil, mxerr.LimitExceeded(10 * time.Second)
		}
		defer a.previewers.leave()
		work, cancel := context.WithTimeout(ctx, previewTime)
		defer cancel()
		tags, err := a.makePreview(work, u)
		if err != nil {
			a.log.WithError(err).WithField("host", u.Host).Debug("no preview")
			if errors.Is(err, outbound.ErrRefused) || errors.Is(err, publicnet.ErrNotPublic) {
				return nil, mxerr.Forbidden("This URL cannot be previewed").With(err)
			}
			return nil, errors.Join(errNoPreview.With(err), a.keepPreview(ctx, key, nil, keepFailure))
		}
		body, err := json.Marshal(tags)
		if err != nil {
			return nil, err
		}
		answer := previewAnswer(body)
		return &answer, a.keepPreview(ctx, key, body, a.Previews.Keep)
	})
}

// knownPreview returns a preview that was made before; an empty one is a failure.
func (a *API) knownPreview(ctx context.Context, key string) (*previewAnswer, error) {
	var body []byte
	var found bool
	err := a.db.Read(ctx, func(tx *storage.Tx) (err error) {
		found, err = tx.Get(`SELECT body FROM media_previews WHERE url = $1 AND expires > $2`, []any{key, a.ms()}, &body)
		return err
	})
	switch {
	case err != nil || !found:
		return nil, err
	case len(body) == 0:
		return nil, errNoPreview
	}
	return (*previewAnswer)(&body), nil
}

func (a *API) keepPreview(ctx context.Context, key string, body []byte, keep time.Duration) error {
	now := a.ms()
	if body == nil {
		body = []byte{}
	}
	return a.db.Write(ctx, func(tx *storage.Tx) error {
		_, err := tx.Exec(`INSERT INTO media_previews (url, fetched, expires, body) VALUES ($1, $2, $3, $4)
			ON CONFLICT (url) DO UPDATE SET fetched = excluded.fetched, expires = excluded.expires, body = excluded.body`,
			key, now, now+keep.Milliseconds(), body)
		return err
	})
}

// fetchPage gets something of the web, up to limit bytes of it.
func (a *API) fetchPage(ctx context.Context, address, accept string, limit int64) (body []byte, typ string, at *url.URL, err error) {
	res, err := a.pages.Get(ctx, address, http.Header{"Accept": {accept}, "Accept-Language": {a.Previews.Languages}})
	if err != nil {
		return nil, "", nil, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, "", nil, fmt.Errorf("status %d", res.StatusCode)
	}
	body, err = io.ReadAll(io.LimitReader(res.Body, limit))
	return body, res.Header.Get("Content-Type"), res.Request.URL, err
}

// makePreview fetches a page, what belongs to it, and says what it is about.
func (a *API) makePreview(ctx context.Context, u *url.URL) (map[string]any, error) {
	if !a.welcome(ctx, u) {
		return map[string]any{}, nil
	}
	res, err := a.pages.Get(ctx, u.String(), http.Header{"Accept": {"text/html,application/xhtml+xml,image/*;q=0.9,*/*;q=0.5"}, "Accept-Language": {a.Previews.Languages}})
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("status %d", res.StatusCode)
	}
	at, typ := res.Request.URL, res.Header.Get("Content-Type")
	base, _, _ := mime.ParseMediaType(typ)
	out := map[string]any{}
	switch {
	case preview.IsHTML(typ):
		body, err := io.ReadAll(io.LimitReader(res.Body, maxPage))
		if err != nil && len(body) == 0 {
			return nil, err
		}
		page := preview.Parse(body, typ, at)
		if page.NoIndex || strings.Contains(strings.ToLower(res.Header.Get("X-Robots-Tag")), "noindex") {
			return out, nil
		}
		a.embed(ctx, page)
		for name, value := range page.Tags {
			out[name] = value
		}
		if page.Image != "" && a.welcome(ctx, mustParse(page.Image)) {
			a.addImage(ctx, page.Image, out)
		}
	case strings.HasPrefix(base, "image/"):
		out["og:title"] = path.Base(at.Path)
		a.keepImage(ctx, fileOf(res), out)
	case base == "text/plain":
		body, err := io.ReadAll(io.LimitReader(res.Body, maxPage))
		if err != nil && len(body) == 0 {
			return nil, err
		}
		out["og:title"], out["og:description"] = path.Base(at.Path), preview.Text(body, typ)
	}
	return out, nil
}

func mustParse(absolute string) *url.URL {
	u, err := url.Parse(absolute)
	if err != nil {
		return &url.URL{}
	}
	return u
}

// embed asks the oEmbed document for what the page itself does not say.
func (a *API) embed(ctx context.Context, page *preview.Page) {
	if page.OEmbed == "" || page.Tags["og:title"] != "" && page.Image != "" {
		return
	}
	body, _, at, err := a.fetchPage(ctx, page.OEmbed, "application/json", maxRobots)
	if err == nil {
		page.Add(body, at)
	}
}

// addImage stores the picture of a page. A page without its picture is a preview as well.
func (a *API) addImage(ctx context.Context, address string, out map[string]any) {
	res, err := a.pages.Get(ctx, address, http.Header{"Accept": {"image/*"}})
	if err != nil {
		return
	}
	defer res.Body.Close()
	if res.StatusCode == http.StatusOK {
		a.keepImage(ctx, fileOf(res), out)
	}
}

// keepImage stores a picture and says so.
func (a *API) keepImage(ctx context.Context, file *remote, out map[string]any) {
	s, err := a.spoolRemote(file, a.Previews.MaxImage, nil)
	if err != nil {
		return
	}
	defer s.Close()
	info, err := thumbnail.Probe(s.Reader())
	if err != nil {
		return
	}
	rec := a.newRecord(uri{a.ServerName, newID()}, "")
	rec.size, rec.typ, rec.purpose = s.Size(), info.Type, forPreview
	err = a.keep(ctx, s, func(tx *storage.Tx, key string) error {
		rec.blob = key
		return rec.put(tx)
	})
	if err != nil {
		a.log.WithError(err).Warn("could not store the picture of a preview")
		return
	}
	out["og:image"], out["og:image:type"], out["matrix:image:size"] = rec.String(), info.Type, s.Size()
	out["og:image:width"], out["og:image:height"] = info.Width, info.Height
}

// sites remembers what robots may read.
type sites struct {
	mu   sync.Mutex
	list map[string]site
}

type site struct {
	rules *preview.Robots
	until time.Time
}

// welcome tells whether a site lets robots read something. A site that cannot say is asked nothing more than what a
// person would.
func (a *API) welcome(ctx context.Context, u *url.URL) bool {
	if !a.Previews.Robots {
		return true
	}
	origin := u.Scheme + "://" + u.Host
	a.sites.mu.Lock()
	known, ok := a.sites.list[origin]
	a.sites.mu.Unlock()
	if !ok || a.now().After(known.until) {
		body, _, _, err := a.fetchPage(ctx, origin+"/robots.txt", "text/plain", maxRobots)
		if err != nil {
			body = nil
		}
		known = site{preview.ParseRobots(body, robot), a.now().Add(robotsFor)}
		a.sites.mu.Lock()
		if a.sites.list == nil || len(a.sites.list) >= maxSites {
			a.sites.list = map[string]site{}
		}
		a.sites.list[origin] = known
		a.sites.mu.Unlock()
	}
	return known.rules.Allowed(u.RequestURI())
}
