package gateway

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sirupsen/logrus"
	"github.com/tidwall/gjson"
)

// browser is the receiving end of Web Push: a push service that decrypts what it is handed, as a browser would.
type browser struct {
	*httptest.Server
	key    *ecdh.PrivateKey
	auth   []byte
	status int
	got    gjson.Result
	header http.Header
}

func newBrowser(t *testing.T) *browser {
	key, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	b := &browser{key: key, auth: make([]byte, 16), status: http.StatusCreated}
	if _, err := rand.Read(b.auth); err != nil {
		t.Fatal(err)
	}
	b.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		b.header = r.Header
		b.got = gjson.ParseBytes(b.decrypt(t, body))
		w.WriteHeader(b.status)
	}))
	t.Cleanup(b.Close)
	return b
}

// decrypt undoes aes128gcm (RFC 8188) with the keys of RFC 8291.
func (b *browser) decrypt(t *testing.T, body []byte) []byte {
	t.Helper()
	salt, idlen := body[:16], int(body[20])
	sender, ciphertext := body[21:21+idlen], body[21+idlen:]
	public, err := ecdh.P256().NewPublicKey(sender)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := b.key.ECDH(public)
	if err != nil {
		t.Fatal(err)
	}
	derive := func(secret, salt []byte, info string, n int) []byte {
		out, err := hkdf.Key(sha256.New, secret, salt, info, n)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	ikm := derive(secret, b.auth, "WebPush: info\x00"+string(b.key.PublicKey().Bytes())+string(sender), 32)
	block, err := aes.NewCipher(derive(ikm, salt, "Content-Encoding: aes128gcm\x00", 16))
	if err != nil {
		t.Fatal(err)
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	plain, err := gcm.Open(nil, derive(ikm, salt, "Content-Encoding: nonce\x00", 12), ciphertext, nil)
	if err != nil {
		t.Fatalf("the browser cannot decrypt what it got: %v", err)
	}
	return []byte(strings.TrimRight(strings.TrimRight(string(plain), "\x00"), "\x02"))
}

func (b *browser) subscription() Subscription {
	return Subscription{b.URL + "/push", base64.RawURLEncoding.EncodeToString(b.key.PublicKey().Bytes()), base64.RawURLEncoding.EncodeToString(b.auth)}
}

func newGateway(t *testing.T, change func(*Config)) *Gateway {
	t.Helper()
	vapid, err := LoadVAPID(filepath.Join(t.TempDir(), "key"))
	if err != nil {
		t.Fatal(err)
	}
	vapid.Contact = "mailto:admin@example.org"
	log := logrus.New()
	log.SetOutput(io.Discard)
	cfg := Config{VAPID: vapid, HTTP: http.DefaultClient, WebPushApps: []string{"org.example.web*"}, Log: logrus.NewEntry(log)}
	if change != nil {
		change(&cfg)
	}
	g, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func message(devices ...Device) *Notification {
	return &Notification{
		EventID: "$event", RoomID: "!room:x", Type: "m.room.message", Sender: "@bob:x", Prio: "high", Content: json.RawMessage(`{"body":"hi"}`),
		Counts: Counts{Unread: 3}, Devices: devices,
	}
}

func TestWebPush(t *testing.T) {
	b, g := newBrowser(t), newGateway(t, nil)
	ctx := context.Background()
	if err := g.WebPush(ctx, message(), b.subscription()); err != nil {
		t.Fatal(err)
	}
	if b.got.Get("event_id").Str != "$event" || b.got.Get("content.body").Str != "hi" || b.got.Get("counts.unread").Int() != 3 || b.got.Get("devices").Exists() {
		t.Errorf("the browser got %s", b.got)
	}
	if b.header.Get("Urgency") != "high" || b.header.Get("Content-Encoding") != "aes128gcm" || !strings.Contains(b.header.Get("Authorization"), g.cfg.VAPID.Public) {
		t.Errorf("with the header %v", b.header)
	}
	long := message()
	long.Content = json.RawMessage(`{"body":"` + strings.Repeat("x", 5000) + `"}`)
	if err := g.WebPush(ctx, long, b.subscription()); err != nil || b.got.Get("content").Exists() || b.got.Get("sender").Str != "@bob:x" {
		t.Errorf("a long message: %v, %s", err, b.got)
	}
	for status, rejected := range map[int]bool{404: true, 410: true, 403: true, 429: false, 500: false} {
		b.status = status
		if err := g.WebPush(ctx, message(), b.subscription()); err == nil || errors.Is(err, ErrRejected) != rejected {
			t.Errorf("status %d: %v", status, err)
		}
	}
	bad := b.subscription()
	bad.P256DH = "x"
	if err := g.WebPush(ctx, message(), bad); !errors.Is(err, ErrRejected) {
		t.Errorf("a key that is none: %v", err)
	}
	b.Close()
	if err := g.WebPush(ctx, message(), b.subscription()); err == nil || errors.Is(err, ErrRejected) {
		t.Errorf("a push service that is down: %v", err)
	}
}

func TestVAPIDKeysStay(t *testing.T) {
	file := filepath.Join(t.TempDir(), "key")
	first, err := LoadVAPID(file)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := LoadVAPID(file); err != nil || again != first {
		t.Errorf("after a restart: %v, %v", again.Public != first.Public, err)
	}
}

// Each device of a request gets its own, and those that nobody can reach are told.
func TestNotify(t *testing.T) {
	b := newBrowser(t)
	var apple, google *http.Request
	var appleBody, googleBody gjson.Result
	tokens := 0
	apnsStatus := 200
	services := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		switch {
		case strings.HasPrefix(r.URL.Path, "/3/device/"):
			apple, appleBody = r, gjson.ParseBytes(body)
			if apnsStatus != 200 {
				w.WriteHeader(apnsStatus)
				_, _ = w.Write([]byte(map[int]string{410: `{"reason":"Unregistered"}`, 503: `{"reason":"ServiceUnavailable"}`}[apnsStatus]))
			}
		case r.URL.Path == "/token":
			tokens++
			w.Header().Set("Content-Type", "application/json")
			_, _ = w.Write([]byte(`{"access_token":"secret","token_type":"Bearer","expires_in":3600}`))
		default:
			google, googleBody = r, gjson.ParseBytes(body)
			if googleBody.Get("message.token").Str == "gone" {
				w.WriteHeader(404)
			}
		}
	}))
	services.EnableHTTP2 = true
	services.StartTLS()
	t.Cleanup(services.Close)
	tokenService := httptest.NewServer(services.Config.Handler)
	t.Cleanup(tokenService.Close)
	g := newGateway(t, func(c *Config) {
		c.APNs = &APNsConfig{AppID: "apple", Topic: "org.example.app", Key: appleKey(t), KeyID: "K", TeamID: "T", URL: services.URL, HTTP: services.Client()}
		c.FCM = &FCMConfig{AppID: "google", ServiceAccount: serviceAccount(t, tokenService.URL+"/token"), URL: tokenService.URL}
	})
	s := b.subscription()
	web := Device{AppID: "org.example.web.app", Pushkey: s.P256DH, Data: json.RawMessage(`{"endpoint":"` + s.Endpoint + `","auth":"` + s.Auth + `"}`)}
	token := make([]byte, 32)
	phone := Device{AppID: "apple", Pushkey: base64.StdEncoding.EncodeToString(token), Tweaks: map[string]any{"sound": "default"}, Data: json.RawMessage(`{"default_payload":{"aps":{"alert":"New"},"x":1}}`)}
	rejected, err := g.Notify(context.Background(), message(web, phone, Device{AppID: "google", Pushkey: "token"}, Device{AppID: "google", Pushkey: "gone"}, Device{AppID: "elsewhere", Pushkey: "unknown"}))
	if err != nil || !slices.Equal(rejected, []string{"gone", "unknown"}) {
		t.Errorf("rejected %q, %v", rejected, err)
	}
	if b.got.Get("event_id").Str != "$event" {
		t.Errorf("the browser got %s", b.got)
	}
	if apple == nil || apple.URL.Path != "/3/device/"+strings.Repeat("00", 32) || apple.Header.Get("Apns-Topic") != "org.example.app" ||
		!strings.HasPrefix(strings.ToLower(apple.Header.Get("Authorization")), "bearer ") || apple.Header.Get("Apns-Priority") != "10" {
		t.Errorf("APNs got %v", apple)
	}
	for path, want := range map[string]string{"aps.alert": "New", "aps.badge": "3", "aps.sound": "default", "aps.mutable-content": "1", "x": "1", "event_id": "$event", "room_id": "!room:x"} {
		if appleBody.Get(path).String() != want {
			t.Errorf("APNs got %s, want %s in %s", appleBody, want, path)
		}
	}
	if google == nil || google.URL.Path != "/v1/projects/project/messages:send" || google.Header.Get("Authorization") != "Bearer secret" || tokens != 1 {
		t.Errorf("FCM got %v after %d tokens", google, tokens)
	}
	if googleBody.Get("message.data.event_id").Str != "$event" || googleBody.Get("message.data.unread").Str != "3" || googleBody.Get("message.android.priority").Str != "high" {
		t.Errorf("FCM got %s", googleBody)
	}
	for status, void := range map[int]bool{410: true, 503: false} {
		apnsStatus = status
		if rejected, err := g.Notify(context.Background(), message(phone)); (len(rejected) == 1) != void || (err == nil) != void {
			t.Errorf("APNs answers %d: rejected %q, %v", status, rejected, err)
		}
	}
}

func appleKey(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return pkcs8(t, key)
}

func serviceAccount(t *testing.T, tokenURL string) []byte {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	out, err := json.Marshal(map[string]string{
		"project_id": "project", "client_email": "push@project", "private_key": string(pkcs8(t, key)), "private_key_id": "1", "token_uri": tokenURL,
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func pkcs8(t *testing.T, key any) []byte {
	t.Helper()
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw})
}
