package gateway

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/sideshow/apns2"
	"github.com/sideshow/apns2/token"
	"github.com/tidwall/gjson"
)

// APNsConfig is an app on Apple's devices.
type APNsConfig struct {
	// AppID is the app_id of its pushers, Topic its bundle id.
	AppID, Topic string
	// Key is the signing key as Apple hands it out (.p8), KeyID and TeamID name it.
	Key           []byte
	KeyID, TeamID string
	// Sandbox uses the service for apps in development.
	Sandbox bool
	// URL and HTTP replace Apple's service; empty and nil: they do not.
	URL  string
	HTTP *http.Client
}

type apns struct {
	client *apns2.Client
	topic  string
}

func newAPNs(cfg *APNsConfig) (*apns, error) {
	key, err := token.AuthKeyFromBytes(cfg.Key)
	if err != nil {
		return nil, fmt.Errorf("read the key: %w", err)
	}
	c := apns2.NewTokenClient(&token.Token{AuthKey: key, KeyID: cfg.KeyID, TeamID: cfg.TeamID})
	if c = c.Production(); cfg.Sandbox {
		c = c.Development()
	}
	if cfg.URL != "" {
		c.Host, c.HTTPClient = cfg.URL, cfg.HTTP
	}
	return &apns{c, cfg.Topic}, nil
}

// voidReasons are why APNs refuses a device for good.
var voidReasons = map[string]bool{
	apns2.ReasonBadDeviceToken: true, apns2.ReasonUnregistered: true, apns2.ReasonDeviceTokenNotForTopic: true, apns2.ReasonMissingDeviceToken: true,
}

func (a *apns) send(ctx context.Context, n *Notification, d *Device) error {
	payload, err := applePayload(n, d)
	if err != nil {
		return err
	}
	push := &apns2.Notification{
		DeviceToken: deviceToken(d.Pushkey), Topic: a.topic, Payload: payload, Expiration: time.Now().Add(timeToLive * time.Second),
		Priority: apns2.PriorityLow, PushType: apns2.PushTypeAlert,
	}
	if n.urgent() {
		push.Priority = apns2.PriorityHigh
	}
	r, err := a.client.PushWithContext(ctx, push)
	switch {
	case err != nil:
		return fmt.Errorf("reach APNs: %w", err)
	case r.Sent():
		return nil
	case voidReasons[r.Reason] || r.StatusCode == http.StatusGone:
		return fmt.Errorf("APNs answers %d %s: %w", r.StatusCode, r.Reason, ErrRejected)
	}
	return fmt.Errorf("APNs answers %d %s", r.StatusCode, r.Reason)
}

// deviceToken is the token in hexadecimal digits, which Matrix clients send in base64.
func deviceToken(pushkey string) string {
	if raw, err := base64.StdEncoding.DecodeString(pushkey); err == nil && len(raw) >= 32 {
		if _, err := hex.DecodeString(pushkey); err != nil {
			return hex.EncodeToString(raw)
		}
	}
	return pushkey
}

// applePayload is what the app gets: what its pusher asks for (data.default_payload), the event and the badge. Without
// more it wakes the app's extension, which fetches the event and writes the text itself.
func applePayload(n *Notification, d *Device) ([]byte, error) {
	payload := map[string]any{}
	if wished := gjson.GetBytes(d.Data, "default_payload"); wished.IsObject() {
		if err := json.Unmarshal([]byte(wished.Raw), &payload); err != nil {
			return nil, fmt.Errorf("data.default_payload: %w", err)
		}
	}
	aps, ok := payload["aps"].(map[string]any)
	if !ok {
		aps = map[string]any{}
	}
	if n.EventID != "" {
		if _, ok := aps["alert"]; !ok {
			aps["alert"] = map[string]any{"loc-key": "SINGLE_UNREAD", "loc-args": []string{}}
		}
		aps["mutable-content"] = 1
		payload["event_id"], payload["room_id"] = n.EventID, n.RoomID
		if sound, ok := d.Tweaks["sound"].(string); ok {
			aps["sound"] = sound
		}
	}
	aps["badge"] = n.Counts.Unread + n.Counts.MissedCalls
	payload["aps"], payload["unread_count"] = aps, n.Counts.Unread
	out, err := json.Marshal(payload)
	if err != nil {
		return nil, fmt.Errorf("encode payload: %w", err)
	}
	return out, nil
}
