// Package gateway is a push gateway: it takes notifications from homeservers, its own above all, and hands them to the
// push services of browsers (Web Push), Apple (APNs) and Google (FCM). An operator who has keys for an app needs no second
// program, and browsers need no keys at all: the server makes its own (VAPID).
//
// A homeserver learns from the answer which of its pushkeys are void. What a push service did not take is an
// error, and the homeserver tries again.
//
// Spec: push gateway API v1.19. Pushers of kind webpush: MSC4174.
package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"path"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/internal/ratelimit"
)

// Config names the apps that are served.
type Config struct {
	// WebPushApps are patterns (as of path.Match) of the app_ids of web apps whose notifications are taken at the
	// endpoint, from any homeserver. Users of this server need no entry: their pushers are of kind webpush.
	WebPushApps []string
	// VAPID identifies this server to the push services of browsers.
	VAPID VAPID
	// APNs and FCM are the native apps; nil: none.
	APNs *APNsConfig
	FCM  *FCMConfig
	// HTTP reaches push services of browsers, whose URLs strangers choose.
	HTTP *http.Client
	// Log gets what operators should know.
	Log *logrus.Entry
}

// Gateway hands notifications to push services. It is safe for concurrent use.
type Gateway struct {
	cfg  Config
	apns *apns
	fcm  *fcm
}

// New makes a Gateway, or says what is wrong with the keys.
func New(cfg Config) (*Gateway, error) {
	g := &Gateway{cfg: cfg}
	var err error
	if cfg.APNs != nil {
		if g.apns, err = newAPNs(cfg.APNs); err != nil {
			return nil, fmt.Errorf("set up APNs: %w", err)
		}
	}
	if cfg.FCM != nil {
		if g.fcm, err = newFCM(cfg.FCM); err != nil {
			return nil, fmt.Errorf("set up FCM: %w", err)
		}
	}
	return g, nil
}

// Endpoints are the endpoints of this package. g may be nil if they are not to be served.
func (g *Gateway) Endpoints() []httpapi.Endpoint {
	return []httpapi.Endpoint{
		httpapi.New(http.MethodPost, "/_matrix/push/v1/notify", httpapi.Anyone, ratelimit.Message, g.notify),
	}
}

// Capability tells web apps that this server pushes to browsers, and the key to subscribe with (MSC4174).
func (g *Gateway) Capability() any {
	return map[string]any{"enabled": true, "vapid": g.cfg.VAPID.Public}
}

// Notification is what a homeserver tells of an event, or of a number of unread messages.
//
// Spec: push gateway API v1.19, "POST /_matrix/push/v1/notify".
type Notification struct {
	EventID           string          `json:"event_id,omitempty"`
	RoomID            string          `json:"room_id,omitempty"`
	Type              string          `json:"type,omitempty"`
	Sender            string          `json:"sender,omitempty"`
	SenderDisplayName string          `json:"sender_display_name,omitempty"`
	RoomName          string          `json:"room_name,omitempty"`
	RoomAlias         string          `json:"room_alias,omitempty"`
	UserIsTarget      *bool           `json:"user_is_target,omitempty"`
	Prio              string          `json:"prio,omitempty"`
	Content           json.RawMessage `json:"content,omitempty"`
	Counts            Counts          `json:"counts"`
	Devices           []Device        `json:"devices,omitempty"`
}

// Counts are what waits for the user.
type Counts struct {
	Unread      int64 `json:"unread,omitempty"`
	MissedCalls int64 `json:"missed_calls,omitempty"`
}

// Device is where a notification is to go.
type Device struct {
	AppID     string          `json:"app_id"`
	Pushkey   string          `json:"pushkey"`
	PushkeyTS int64           `json:"pushkey_ts,omitempty"`
	Data      json.RawMessage `json:"data,omitempty"`
	Tweaks    map[string]any  `json:"tweaks,omitempty"`
}

// urgent tells whether a device should be woken at once.
func (n *Notification) urgent() bool { return n.Prio != "low" }

// ErrRejected is wrapped by errors that say that a pushkey is void for good.
var ErrRejected = errors.New("the push service rejects the pushkey")

const (
	// maxDevices bounds the devices of one request.
	maxDevices = 20
	// serviceTimeout bounds a request to a push service.
	serviceTimeout = 15 * time.Second
)

type notifyRequest struct {
	Notification *Notification `json:"notification" required:"true"`
}

type notifyAnswer struct {
	Rejected []string `json:"rejected"`
}

func (g *Gateway) notify(ctx context.Context, _ *httpapi.Caller, in *notifyRequest) (*notifyAnswer, error) {
	if len(in.Notification.Devices) == 0 || len(in.Notification.Devices) > maxDevices {
		return nil, mxerr.InvalidParam(fmt.Sprintf("A notification is for 1 to %d devices", maxDevices))
	}
	rejected, err := g.Notify(ctx, in.Notification)
	if err != nil {
		g.cfg.Log.WithError(err).Warn("a push service did not take a notification")
		return nil, mxerr.New(http.StatusBadGateway, "M_UNKNOWN", "A push service did not take the notification").With(err)
	}
	return &notifyAnswer{rejected}, nil
}

// Notify hands a notification to the push services of its devices and returns the pushkeys that are void. An error says
// that some device may not have got it; it may be tried again.
func (g *Gateway) Notify(ctx context.Context, n *Notification) (rejected []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, serviceTimeout)
	defer cancel()
	rejected = []string{}
	for i := range n.Devices {
		d := &n.Devices[i]
		switch failure := g.hand(ctx, n, d); {
		case errors.Is(failure, ErrRejected):
			g.cfg.Log.WithError(failure).WithField("app_id", d.AppID).Info("a pushkey is void")
			rejected = append(rejected, d.Pushkey)
		case failure != nil:
			err = errors.Join(err, failure)
		}
	}
	return rejected, err
}

// hand hands a notification to the push service of one device.
func (g *Gateway) hand(ctx context.Context, n *Notification, d *Device) error {
	switch {
	case g.apns != nil && d.AppID == g.cfg.APNs.AppID:
		return g.apns.send(ctx, n, d)
	case g.fcm != nil && d.AppID == g.cfg.FCM.AppID:
		return g.fcm.send(ctx, n, d)
	}
	for _, pattern := range g.cfg.WebPushApps {
		if ok, err := path.Match(pattern, d.AppID); err == nil && ok {
			return g.webPushDevice(ctx, n, d)
		}
	}
	return fmt.Errorf("the app %.64q is not served here: %w", d.AppID, ErrRejected)
}
