package gateway

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/jwt"
)

// FCMConfig is an app on devices with Google's services.
type FCMConfig struct {
	// AppID is the app_id of its pushers.
	AppID string
	// ServiceAccount is the key file of a service account that may send, as Google hands it out (JSON).
	ServiceAccount []byte
	// URL replaces Google's service; empty: it does not.
	URL string
}

// fcmScope is what the service account asks for.
const fcmScope = "https://www.googleapis.com/auth/firebase.messaging"

type fcm struct {
	http *http.Client
	url  string
}

func newFCM(cfg *FCMConfig) (*fcm, error) {
	var account struct {
		Project  string `json:"project_id"`
		Email    string `json:"client_email"`
		Key      string `json:"private_key"`
		KeyID    string `json:"private_key_id"`
		TokenURI string `json:"token_uri"`
	}
	if err := json.Unmarshal(cfg.ServiceAccount, &account); err != nil {
		return nil, fmt.Errorf("read the service account: %w", err)
	}
	if account.Project == "" || account.Email == "" || account.Key == "" || account.TokenURI == "" {
		return nil, errors.New("the service account lacks project_id, client_email, private_key or token_uri")
	}
	base := cfg.URL
	if base == "" {
		base = "https://fcm.googleapis.com"
	}
	tokens := &jwt.Config{
		Email: account.Email, PrivateKey: []byte(account.Key), PrivateKeyID: account.KeyID, TokenURL: account.TokenURI, Scopes: []string{fcmScope},
	}
	return &fcm{
		// The client fetches tokens when it needs them, whoever's request that is.
		http: oauth2.NewClient(context.Background(), tokens.TokenSource(context.Background())),
		url:  base + "/v1/projects/" + url.PathEscape(account.Project) + "/messages:send",
	}, nil
}

func (f *fcm) send(ctx context.Context, n *Notification, d *Device) error {
	priority := "normal"
	if n.urgent() {
		priority = "high"
	}
	body, err := json.Marshal(map[string]any{"message": map[string]any{
		"token": d.Pushkey, "data": androidData(n), "android": map[string]any{"priority": priority, "ttl": strconv.Itoa(timeToLive) + "s"},
	}})
	if err != nil {
		return fmt.Errorf("encode message: %w", err)
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, f.url, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("make request: %w", err)
	}
	r.Header.Set("Content-Type", "application/json")
	answer, err := f.http.Do(r)
	if err != nil {
		return fmt.Errorf("reach FCM: %w", err)
	}
	defer func() { _ = answer.Body.Close() }()
	return judge(answer, http.StatusNotFound, http.StatusBadRequest)
}

// androidData is what the app gets: texts alone, as FCM wants them.
func androidData(n *Notification) map[string]string {
	data := map[string]string{"unread": strconv.FormatInt(n.Counts.Unread, 10)}
	for name, value := range map[string]string{
		"event_id": n.EventID, "room_id": n.RoomID, "type": n.Type, "sender": n.Sender, "sender_display_name": n.SenderDisplayName,
		"room_name": n.RoomName, "room_alias": n.RoomAlias, "prio": n.Prio,
	} {
		if value != "" {
			data[name] = value
		}
	}
	if len(n.Content) > 0 && len(n.Content) < maxPayload/2 { // FCM takes 4 KiB
		data["content"] = string(n.Content)
	}
	return data
}
