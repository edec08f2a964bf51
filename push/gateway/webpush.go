package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	webpush "github.com/SherClockHolmes/webpush-go"
	"github.com/tidwall/gjson"
)

// VAPID is the pair of keys by which push services know who sends (RFC 8292), as unpadded URL-safe base64.
type VAPID struct {
	Private, Public string
	// Contact is a URL or mail address that push services may use if something goes wrong.
	Contact string
}

// LoadVAPID reads the keys from a file, or makes them and writes it if there is none.
func LoadVAPID(file string) (VAPID, error) {
	text, err := os.ReadFile(file) //nolint:gosec // the operator names the folder
	if errors.Is(err, fs.ErrNotExist) {
		return makeVAPID(file)
	}
	if err != nil {
		return VAPID{}, fmt.Errorf("read keys of Web Push: %w", err)
	}
	private, public, ok := strings.Cut(strings.TrimSpace(string(text)), "\n")
	if !ok {
		return VAPID{}, fmt.Errorf("%s does not hold two keys, one a line", file)
	}
	return VAPID{Private: strings.TrimSpace(private), Public: strings.TrimSpace(public)}, nil
}

func makeVAPID(file string) (VAPID, error) {
	private, public, err := webpush.GenerateVAPIDKeys()
	if err != nil {
		return VAPID{}, fmt.Errorf("make keys of Web Push: %w", err)
	}
	// By way of another file, so that a crash leaves no half of it.
	draft := file + ".new"
	if err := os.WriteFile(draft, []byte(private+"\n"+public+"\n"), 0o600); err != nil {
		return VAPID{}, fmt.Errorf("write keys of Web Push: %w", err)
	}
	if err := os.Rename(draft, filepath.Clean(file)); err != nil {
		return VAPID{}, fmt.Errorf("write keys of Web Push: %w", err)
	}
	return VAPID{Private: private, Public: public}, nil
}

// Subscription is where a browser takes pushes: the URL of its push service, and the keys with which only the browser can
// read them (RFC 8291).
type Subscription struct {
	Endpoint, P256DH, Auth string
}

const (
	// maxPayload is what all push services take, less what encryption adds.
	maxPayload = 3800
	// timeToLive is how long a push service keeps what it cannot deliver, in seconds.
	timeToLive = 24 * 60 * 60
)

// webPushDevice pushes to a web app that names its subscription as Sygnal's clients do: the pushkey is the key.
func (g *Gateway) webPushDevice(ctx context.Context, n *Notification, d *Device) error {
	data := gjson.ParseBytes(d.Data)
	s := Subscription{data.Get("endpoint").Str, d.Pushkey, data.Get("auth").Str}
	if data.Get("events_only").Bool() && n.EventID == "" {
		return nil
	}
	return g.WebPush(ctx, n, s)
}

// WebPush encrypts a notification for a browser and hands it to the browser's push service. The payload is the
// notification without its devices. The error wraps ErrRejected if the subscription is void.
func (g *Gateway) WebPush(ctx context.Context, n *Notification, s Subscription) error {
	if u, err := url.Parse(s.Endpoint); err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" {
		return fmt.Errorf("the endpoint is not a URL: %w", ErrRejected)
	}
	payload, err := webPayload(n)
	if err != nil {
		return err
	}
	options := &webpush.Options{
		HTTPClient: g.cfg.HTTP, Subscriber: g.cfg.VAPID.Contact, VAPIDPublicKey: g.cfg.VAPID.Public, VAPIDPrivateKey: g.cfg.VAPID.Private,
		TTL: timeToLive, Urgency: webpush.UrgencyLow,
	}
	if n.urgent() {
		options.Urgency = webpush.UrgencyHigh
	}
	answer, err := webpush.SendNotificationWithContext(ctx, payload, &webpush.Subscription{
		Endpoint: s.Endpoint, Keys: webpush.Keys{P256dh: s.P256DH, Auth: s.Auth},
	}, options)
	var network *url.Error
	if errors.As(err, &network) {
		return fmt.Errorf("reach the push service: %w", err)
	}
	if err != nil { // what remains are keys that are none
		return fmt.Errorf("%w: %w", ErrRejected, err)
	}
	defer func() { _ = answer.Body.Close() }()
	return judge(answer, http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound, http.StatusGone)
}

// webPayload is what the browser gets.
func webPayload(n *Notification) ([]byte, error) {
	lean := *n
	lean.Devices = nil
	payload, err := json.Marshal(&lean)
	if err == nil && len(payload) > maxPayload {
		lean.Content = nil
		payload, err = json.Marshal(&lean)
	}
	if err == nil && len(payload) > maxPayload {
		payload, err = json.Marshal(&Notification{EventID: n.EventID, RoomID: n.RoomID, Prio: n.Prio, Counts: n.Counts})
	}
	if err != nil {
		return nil, fmt.Errorf("encode notification: %w", err)
	}
	return payload, nil
}

// judge makes an error of the status of a push service's answer. Some statuses say that the pushkey is void.
func judge(answer *http.Response, void ...int) error {
	if answer.StatusCode/100 == 2 {
		return nil
	}
	text, _ := io.ReadAll(io.LimitReader(answer.Body, 300)) // for the log alone
	err := fmt.Errorf("the push service answers %d: %q", answer.StatusCode, text)
	for _, status := range void {
		if answer.StatusCode == status {
			return fmt.Errorf("%w: %w", ErrRejected, err)
		}
	}
	return err
}
