package pushers

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"time"

	"github.com/tidwall/gjson"

	"github.com/myelin-im/myelin/internal/publicnet"
	"github.com/myelin-im/myelin/push/gateway"
	"github.com/myelin-im/myelin/push/rules"
	"github.com/myelin-im/myelin/roomserver"
)

const (
	requestTimeout = 20 * time.Second
	maxAnswer      = 64 << 10
)

// NewHTTPClient makes a client for URLs that users choose, which reaches private addresses only if it may. It follows no
// redirects: a gateway is where its pusher says.
func NewHTTPClient(allowPrivate bool) *http.Client {
	dialer := &net.Dialer{Timeout: 10 * time.Second}
	if !allowPrivate {
		dialer.Control = publicnet.Control
	}
	return &http.Client{
		Timeout: requestTimeout,
		Transport: &http.Transport{
			DialContext: dialer.DialContext, ForceAttemptHTTP2: true, MaxIdleConnsPerHost: 8, IdleConnTimeout: time.Minute,
			TLSHandshakeTimeout: 10 * time.Second, ResponseHeaderTimeout: requestTimeout, MaxResponseHeaderBytes: 16 << 10,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// silent tells whether there is nothing but a number to tell.
func (n *note) silent() bool { return n.event == nil && n.outside == nil }

// noBadge tells whether the client does not want to hear of numbers alone (MSC4076).
func (p *pusher) noBadge() bool {
	return member(p.Data, "disable_badge_count").Type == gjson.True || member(p.Data, "org.matrix.msc4076.disable_badge_count").Type == gjson.True
}

// forwarded is what the gateway gets of the pusher's data.
func (p *pusher) forwarded() json.RawMessage {
	out := map[string]json.RawMessage{}
	gjson.ParseBytes(p.Data).ForEach(func(k, v gjson.Result) bool {
		if k.Str != "url" {
			out[k.Str] = json.RawMessage(v.Raw)
		}
		return true
	})
	data, err := json.Marshal(out)
	if err != nil { // it was valid JSON
		return json.RawMessage("{}")
	}
	return data
}

// compose makes the body of the request.
func (a *API) compose(ctx context.Context, p *pusher, n *note, badge int64) (*gateway.Notification, error) {
	d := gateway.Device{AppID: p.AppID, Pushkey: p.Pushkey, PushkeyTS: p.SetTS / 1000, Data: p.forwarded()}
	out := &gateway.Notification{}
	if !p.noBadge() {
		out.Counts.Unread = badge
	}
	if !n.silent() {
		full := member(p.Data, "format").Str != "event_id_only"
		if err := a.describe(ctx, p.User, n, full, out); err != nil {
			return nil, err
		}
		if full {
			d.Tweaks = tweaks(n.actions)
		}
	}
	out.Devices = []gateway.Device{d}
	return out, nil
}

// describe fills in what the gateway is told of the event.
func (a *API) describe(ctx context.Context, user string, n *note, full bool, out *gateway.Notification) error {
	out.Prio = "low"
	if n.outside != nil {
		o := n.outside
		out.EventID, out.RoomID, out.Prio = o.Event.ID, o.RoomID, "high"
		if full {
			target := true
			out.Type, out.Sender, out.UserIsTarget, out.Content = o.Event.Type, o.Event.Sender, &target, o.Event.Content()
			out.RoomName = strippedName(o.Stripped)
		}
		return nil
	}
	e := n.event
	out.EventID, out.RoomID = e.ID, n.room.ID
	if n.actions.Highlight || n.actions.Sound != "" || e.Type == "m.room.encrypted" {
		out.Prio = "high"
	}
	if !full {
		return nil
	}
	out.Type, out.Sender, out.Content = e.Type, e.Sender, e.Content()
	if e.Type == "m.room.member" && e.StateKey != nil {
		target := *e.StateKey == user
		out.UserIsTarget = &target
	}
	for _, field := range []struct {
		typ, key, member string
		to               *string
	}{
		{"m.room.name", "", "name", &out.RoomName},
		{"m.room.canonical_alias", "", "alias", &out.RoomAlias},
		{"m.room.member", e.Sender, "displayname", &out.SenderDisplayName},
	} {
		s, err := a.rooms.StateEvent(ctx, n.room, e.StateAfter, field.typ, field.key)
		if err != nil {
			return fmt.Errorf("%s of %s: %w", field.typ, n.room.ID, err)
		}
		if s != nil {
			*field.to, _ = s.ContentString(field.member)
		}
	}
	return nil
}

// strippedName is the name of a room as an invite tells it.
func strippedName(stripped json.RawMessage) (name string) {
	gjson.ParseBytes(stripped).ForEach(func(_, e gjson.Result) bool {
		if e.Get("type").Str == "m.room.name" {
			name = e.Get("content.name").Str
		}
		return true
	})
	return name
}

// tweaks are the set_tweak actions of a rule.
func tweaks(actions *rules.Actions) map[string]any {
	out := map[string]any{}
	for _, raw := range actions.Raw {
		var tweak struct {
			Name  string `json:"set_tweak"`
			Value any    `json:"value"`
		}
		if raw[0] != '{' || json.Unmarshal(raw, &tweak) != nil || tweak.Name == "" {
			continue
		}
		if tweak.Value == nil && tweak.Name == "highlight" {
			tweak.Value = true
		}
		out[tweak.Name] = tweak.Value
	}
	return out
}

// send tells a gateway, and returns whether it says that the pushkey is void.
func (a *API) send(ctx context.Context, q *queue, p *pusher, n *note) (rejected bool, err error) {
	if n.event != nil { // it may have been read elsewhere while the gateway could not be reached
		if read, err := a.unread.IsRead(ctx, n.room, p.User, n.event); err != nil || read {
			return false, err
		}
	}
	badge, known := q.number()
	if n.silent() && known {
		return false, nil
	}
	body, err := a.compose(ctx, p, n, badge)
	if errors.Is(err, roomserver.ErrUnknownRoom) {
		return false, nil // purged: nobody needs to hear of it
	}
	if err != nil {
		return false, err
	}
	select {
	case a.slots <- struct{}{}:
		defer func() { <-a.slots }()
	case <-ctx.Done():
		return false, ctx.Err()
	}
	if rejected, err = a.transmit(ctx, p, body); err == nil {
		q.numbered(badge)
	}
	return rejected, err
}

// transmit hands a notification to the gateway of a pusher.
func (a *API) transmit(ctx context.Context, p *pusher, body *gateway.Notification) (rejected bool, err error) {
	switch {
	case p.webPush():
		err = a.cfg.Gateway.WebPush(ctx, body, p.subscription())
		if errors.Is(err, gateway.ErrRejected) {
			return true, nil
		}
		return false, err
	case a.own(p.url()):
		void, err := a.cfg.Gateway.Notify(ctx, body)
		return slices.Contains(void, p.Pushkey), err
	}
	return a.post(ctx, p, body)
}

// own tells whether a gateway is the one that this server brings along.
func (a *API) own(url string) bool {
	return a.cfg.ClientURL != "" && url == a.cfg.ClientURL+gatewayPath
}

// post tells a gateway elsewhere.
func (a *API) post(ctx context.Context, p *pusher, body *gateway.Notification) (rejected bool, err error) {
	text, err := json.Marshal(map[string]any{"notification": body})
	if err != nil {
		return false, fmt.Errorf("encode notification: %w", err)
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, p.url(), bytes.NewReader(text))
	if err != nil {
		return false, fmt.Errorf("make request: %w", err)
	}
	r.Header.Set("Content-Type", "application/json")
	answer, err := a.http.Do(r)
	if err != nil {
		return false, fmt.Errorf("reach push gateway: %w", err)
	}
	defer func() { _ = answer.Body.Close() }()
	read, err := io.ReadAll(io.LimitReader(answer.Body, maxAnswer))
	if err != nil {
		return false, fmt.Errorf("read answer of push gateway: %w", err)
	}
	if answer.StatusCode/100 != 2 {
		return false, fmt.Errorf("the push gateway answers %d", answer.StatusCode)
	}
	keys := gjson.GetBytes(read, "rejected")
	return keys.IsArray() && slices.ContainsFunc(keys.Array(), func(key gjson.Result) bool { return key.Str == p.Pushkey }), nil
}
