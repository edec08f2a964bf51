package pushers

import (
	"context"
	"crypto/ecdh"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/sirupsen/logrus"
	"github.com/tidwall/gjson"

	"github.com/myelin-im/myelin/accounts"
	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/internal/ratelimit"
	"github.com/myelin-im/myelin/push/gateway"
	"github.com/myelin-im/myelin/push/unread"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/storage"
)

// Config says what pushers may do.
type Config struct {
	// AllowPrivate lets gateways have private addresses and speak plain HTTP.
	AllowPrivate bool
	// Gateway is the gateway that this server brings along, ClientURL where clients reach this server.
	Gateway   *gateway.Gateway
	ClientURL string
	// Mails sends e-mails about unread messages; nil: there are none.
	Mails *Mails
}

// kindEmail is the kind of pushers that send e-mails.
const kindEmail = "email"

// Deps are the other parts of the server that pushers stand on.
type Deps struct {
	// DB must have been opened with Schema.
	DB *storage.DB
	// Rooms has the events, Unread judges and counts them.
	Rooms  *roomserver.Server
	Unread *unread.Counts
	// Log gets what operators should know.
	Log *logrus.Entry
}

// API keeps users' pushers and tells their gateways. It is safe for concurrent use.
type API struct {
	cfg    Config
	db     *storage.DB
	rooms  *roomserver.Server
	unread *unread.Counts
	log    *logrus.Entry
	http   *http.Client
	now    func() time.Time

	// slots bounds the requests to gateways at a time.
	slots chan struct{}

	mu    sync.Mutex
	users map[string]*user // with pushers; guarded by mu
	queue []*user          // to be looked at; guarded by mu
	wake  chan struct{}    // has an element if queue may not be empty
	names []string         // scratch; guarded by mu

	deliveries sync.WaitGroup
}

const (
	maxAppID   = 64
	maxPushkey = 512
	maxText    = 512
	maxData    = 16 << 10
	maxPushers = 100 // of one user
)

// New makes the API. It must be called before the first write; Run loads the pushers.
func New(cfg Config, deps Deps) *API {
	a := &API{
		cfg: cfg, db: deps.DB, rooms: deps.Rooms, unread: deps.Unread, log: deps.Log, http: NewHTTPClient(cfg.AllowPrivate), now: time.Now,
		slots: make(chan struct{}, maxRequests), users: map[string]*user{}, wake: make(chan struct{}, 1),
	}
	deps.DB.Watch(a.published)
	return a
}

// Endpoints are the endpoints of this package.
func (a *API) Endpoints() []httpapi.Endpoint {
	return []httpapi.Endpoint{
		httpapi.New("GET", "/_matrix/client/v3/pushers", httpapi.User, ratelimit.Read, a.list),
		httpapi.New("POST", "/_matrix/client/v3/pushers/set", httpapi.User, ratelimit.Account, a.set),
	}
}

// Hooks are what accounts call when devices and accounts end.
func Hooks() accounts.Hooks {
	return accounts.Hooks{
		DevicesDeleted: removeDevices,
		Deactivated:    func(tx *storage.Tx, userID string, _ bool) error { return removeDevices(tx, userID, nil) },
	}
}

type listAnswer struct {
	Pushers []pusher `json:"pushers"`
}

func (a *API) list(ctx context.Context, by *httpapi.Caller, _ *struct{}) (*listAnswer, error) {
	out := &listAnswer{}
	err := a.db.Read(ctx, func(tx *storage.Tx) (err error) {
		out.Pushers, err = ofUser(tx, by.UserID)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list pushers: %w", err)
	}
	if out.Pushers == nil {
		out.Pushers = []pusher{}
	}
	return out, nil
}

type setRequest struct {
	Kind              *string         `json:"kind"`
	AppID             string          `json:"app_id" required:"true"`
	Pushkey           string          `json:"pushkey" required:"true"`
	AppDisplayName    *string         `json:"app_display_name"`
	DeviceDisplayName *string         `json:"device_display_name"`
	ProfileTag        string          `json:"profile_tag"`
	Lang              *string         `json:"lang"`
	Data              json.RawMessage `json:"data"`
	Append            bool            `json:"append"`
}

func (a *API) set(ctx context.Context, by *httpapi.Caller, in *setRequest) (*httpapi.Empty, error) {
	if utf8.RuneCountInString(in.AppID) > maxAppID || len(in.Pushkey) > maxPushkey || in.AppID == "" || in.Pushkey == "" {
		return nil, mxerr.InvalidParam(fmt.Sprintf("app_id has 1 to %d characters, pushkey 1 to %d bytes", maxAppID, maxPushkey))
	}
	k := key{in.AppID, in.Pushkey}
	if in.Kind == nil {
		err := a.db.Write(ctx, func(tx *storage.Tx) error {
			_, err := remove(tx, by.UserID, k)
			return err
		})
		return nil, err
	}
	p, err := a.check(in)
	if err != nil {
		return nil, err
	}
	p.User, p.DeviceID, p.SetTS = by.UserID, by.DeviceID, a.now().UnixMilli()
	tooMany, foreign := false, false
	err = a.db.Write(ctx, func(tx *storage.Tx) error {
		if p.Kind == kindEmail {
			has, err := accounts.HasEmail(tx, p.User, p.Pushkey)
			if foreign = !has; err != nil || foreign {
				return err
			}
		}
		var n int64
		if _, err := tx.Get(`SELECT count(*) FROM pushers WHERE user_id = $1 AND NOT (app_id = $2 AND pushkey = $3)`,
			[]any{by.UserID, k.app, k.pushkey}, &n); err != nil {
			return fmt.Errorf("count pushers: %w", err)
		}
		if tooMany = n >= maxPushers; tooMany {
			return nil
		}
		if !in.Append {
			if err := removeOthers(tx, by.UserID, k); err != nil {
				return err
			}
		}
		return put(tx, p)
	})
	if err == nil && foreign {
		return nil, mxerr.New(http.StatusBadRequest, "M_THREEPID_NOT_FOUND", "The account does not have this e-mail address")
	}
	if err == nil && tooMany {
		return nil, mxerr.InvalidParam(fmt.Sprintf("An account has at most %d pushers", maxPushers))
	}
	return nil, err
}

// check makes a pusher of what a client asks for.
func (a *API) check(in *setRequest) (*pusher, error) {
	for name, missing := range map[string]bool{
		"app_display_name": in.AppDisplayName == nil, "device_display_name": in.DeviceDisplayName == nil, "lang": in.Lang == nil, "data": len(in.Data) == 0,
	} {
		if missing {
			return nil, mxerr.MissingParam("Missing parameter: " + name)
		}
	}
	p := &pusher{
		AppID: in.AppID, Pushkey: in.Pushkey, Kind: *in.Kind, AppDisplayName: *in.AppDisplayName, DeviceDisplayName: *in.DeviceDisplayName,
		ProfileTag: in.ProfileTag, Lang: *in.Lang, Data: in.Data,
	}
	for _, text := range []string{p.AppDisplayName, p.DeviceDisplayName, p.ProfileTag, p.Lang} {
		if len(text) > maxText {
			return nil, mxerr.InvalidParam(fmt.Sprintf("A name is longer than %d bytes", maxText))
		}
	}
	if data := gjson.ParseBytes(p.Data); !data.IsObject() || len(p.Data) > maxData {
		return nil, mxerr.InvalidParam(fmt.Sprintf("data must be an object of at most %d bytes", maxData))
	}
	switch {
	case p.Kind == "http":
		return p, a.checkURL(p.url())
	case p.webPush():
		return p, a.checkSubscription(p.subscription())
	case p.Kind == kindEmail && a.cfg.Mails != nil:
		if p.AppID != "m.email" {
			return nil, mxerr.InvalidParam("The app_id of a pusher of kind email is m.email")
		}
		return p, nil // whose the address is, the caller looks up
	}
	return nil, mxerr.InvalidParam("This server has no pushers of that kind")
}

// webPush tells whether the pusher is for a browser (MSC4174).
func (p *pusher) webPush() bool { return p.Kind == "webpush" || p.Kind == "org.matrix.msc4174.webpush" }

// subscription is where the browser of a pusher of kind webpush takes pushes.
func (p *pusher) subscription() gateway.Subscription {
	return gateway.Subscription{Endpoint: p.url(), P256DH: p.Pushkey, Auth: member(p.Data, "auth").Str}
}

func (a *API) checkSubscription(s gateway.Subscription) error {
	key, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(s.P256DH, "="))
	if _, keyErr := ecdh.P256().NewPublicKey(key); err != nil || keyErr != nil {
		return mxerr.InvalidParam("pushkey must be the subscription's key p256dh")
	}
	if auth, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(s.Auth, "=")); err != nil || len(auth) < 16 {
		return mxerr.InvalidParam("data.auth must be the subscription's secret")
	}
	u, err := url.Parse(s.Endpoint)
	if err != nil || u.Host == "" || u.User != nil || u.Scheme != "https" && (u.Scheme != "http" || !a.cfg.AllowPrivate) {
		return mxerr.InvalidParam("data.url must be the HTTPS URL of the subscription")
	}
	return nil
}

// gatewayPath is the path of every push gateway.
const gatewayPath = "/_matrix/push/v1/notify"

func (a *API) checkURL(text string) error {
	if a.own(text) {
		return nil
	}
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.User != nil || u.Fragment != "" || u.Path != gatewayPath {
		return mxerr.InvalidParam("data.url must be an HTTPS URL with the path " + gatewayPath)
	}
	if u.Scheme != "https" && (u.Scheme != "http" || !a.cfg.AllowPrivate) {
		return mxerr.InvalidParam("data.url must be an HTTPS URL")
	}
	return nil
}

// url is where the gateway of a pusher of kind http is.
func (p *pusher) url() string {
	url, _ := member(p.Data, "url").Value().(string)
	return url
}

// member finds a member of an object whatever characters its name has.
func member(object []byte, name string) (found gjson.Result) {
	gjson.ParseBytes(object).ForEach(func(k, v gjson.Result) bool {
		if k.Str == name {
			found = v
		}
		return true
	})
	return found
}
