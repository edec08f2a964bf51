package harness

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha1" // #nosec G505: what tools of its kind compute
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tidwall/gjson"
)

// Password is that of every user whom Register makes.
const Password = "a password of the tests"

// J is a JSON object in a request.
type J = map[string]any

// Client is one logged-in device, or nobody without a token.
type Client struct {
	Server   *Server
	UserID   string
	DeviceID string
	Token    string

	t     testing.TB
	since string
}

// Answer is what the server said.
type Answer struct {
	Status int
	Body   []byte
	Header http.Header
	// JSON is the body.
	JSON gjson.Result
}

// Code is the errcode of an error, or empty.
func (a *Answer) Code() string { return a.JSON.Get("errcode").Str }

// String is status and body.
func (a *Answer) String() string { return fmt.Sprintf("%d %.2000s", a.Status, a.Body) }

// Client returns one that is not logged in.
func (s *Server) Client(t testing.TB) *Client { return &Client{Server: s, t: t} }

// Register makes an account and returns its first device.
func (s *Server) Register(t testing.TB, localpart string) *Client {
	t.Helper()
	c := s.Client(t)
	a := c.Must("POST", "/_matrix/client/v3/register", J{"username": localpart, "password": Password, "auth": J{"type": "m.login.dummy"}})
	c.loggedIn(a)
	return c
}

// Admin makes an administrator's account with the shared secret and returns its first device.
func (s *Server) Admin(t testing.TB, localpart string) *Client {
	t.Helper()
	const endpoint = "/_synapse/admin/v1/register"
	c := s.Client(t)
	nonce := c.Must("GET", endpoint, nil).JSON.Get("nonce").Str
	mac := hmac.New(sha1.New, []byte(sharedSecret))
	mac.Write([]byte(nonce + "\x00" + localpart + "\x00" + Password + "\x00admin"))
	c.loggedIn(c.Must("POST", endpoint, J{"nonce": nonce, "username": localpart, "password": Password, "admin": true, "mac": hex.EncodeToString(mac.Sum(nil))}))
	return c
}

// Guest makes a guest.
func (s *Server) Guest(t testing.TB) *Client {
	t.Helper()
	c := s.Client(t)
	c.loggedIn(c.Must("POST", "/_matrix/client/v3/register?kind=guest", J{}))
	return c
}

// Login returns another device of the same user.
func (c *Client) Login() *Client {
	c.t.Helper()
	d := c.Server.Client(c.t)
	d.loggedIn(d.Must("POST", "/_matrix/client/v3/login", J{
		"type": "m.login.password", "identifier": J{"type": "m.id.user", "user": c.UserID}, "password": Password,
	}))
	return d
}

func (c *Client) loggedIn(a *Answer) {
	c.UserID, c.DeviceID, c.Token = a.JSON.Get("user_id").Str, a.JSON.Get("device_id").Str, a.JSON.Get("access_token").Str
}

// With returns the same device reporting to another test, for subtests and goroutines.
func (c *Client) With(t testing.TB) *Client {
	d := *c
	d.t = t
	return &d
}

// Send makes a request. The body is nil for none, []byte or string as it is, or anything that is encoded as JSON.
func (c *Client) Send(method, path string, body any) (*Answer, error) {
	var r io.Reader
	switch b := body.(type) {
	case nil:
	case string:
		r = strings.NewReader(b)
	case []byte:
		r = bytes.NewReader(b)
	default:
		raw, err := json.Marshal(b)
		if err != nil {
			return nil, err
		}
		r = bytes.NewReader(raw)
	}
	req, err := http.NewRequest(method, c.Server.URL+path, r)
	if err != nil {
		return nil, err
	}
	if c.Token != "" {
		req.Header.Set("Authorization", "Bearer "+c.Token)
	}
	res, err := c.Server.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	if err != nil {
		return nil, err
	}
	return &Answer{res.StatusCode, raw, res.Header, gjson.ParseBytes(raw)}, nil
}

// Do is Send that fails the test if there is no answer, or one that no request deserves: a status of 500 or above.
func (c *Client) Do(method, path string, body any) *Answer {
	c.t.Helper()
	a, err := c.Send(method, path, body)
	if err != nil {
		c.t.Fatalf("%s %s: %v", method, path, err)
	}
	if a.Status >= 500 {
		c.t.Errorf("%s %s: %v", method, path, a)
	}
	return a
}

// Must is Do for what has to succeed.
func (c *Client) Must(method, path string, body any) *Answer {
	c.t.Helper()
	a := c.Do(method, path, body)
	if a.Status != http.StatusOK {
		c.t.Fatalf("%s %s: %v", method, path, a)
	}
	return a
}

// Refused is Do for what has to fail with this status and errcode.
func (c *Client) Refused(status int, code, method, path string, body any) *Answer {
	c.t.Helper()
	a := c.Do(method, path, body)
	if a.Status != status || a.Code() != code {
		c.t.Errorf("%s %s: %v, want %d %s", method, path, a, status, code)
	}
	return a
}

// Path builds a path of the client-server API: each argument is escaped and put in the place of a %s.
func Path(format string, segments ...string) string {
	escaped := make([]any, len(segments))
	for i, s := range segments {
		escaped[i] = url.PathEscape(s)
	}
	return "/_matrix/client/v3" + fmt.Sprintf(format, escaped...)
}

// Create creates a room.
func (c *Client) Create(request J) (roomID string) {
	c.t.Helper()
	return c.Must("POST", Path("/createRoom"), request).JSON.Get("room_id").Str
}

// Join joins a room by id or alias.
func (c *Client) Join(room string) {
	c.t.Helper()
	c.Must("POST", Path("/join/%s", room), J{})
}

// Leave leaves a room.
func (c *Client) Leave(room string) {
	c.t.Helper()
	c.Must("POST", Path("/rooms/%s/leave", room), J{})
}

// Change kicks, bans, unbans or invites a user: the action is the last segment of the endpoint.
func (c *Client) Change(action, room, user string) {
	c.t.Helper()
	c.Must("POST", Path("/rooms/%s/"+action, room), J{"user_id": user})
}

var lastTxn atomic.Int64

// Txn returns a transaction id that was not used before.
func Txn() string { return fmt.Sprintf("txn%d", lastTxn.Add(1)) }

// Event sends an event and returns its id.
func (c *Client) Event(room, typ string, content any) (eventID string) {
	c.t.Helper()
	return c.Must("PUT", Path("/rooms/%s/send/%s/%s", room, typ, Txn()), content).JSON.Get("event_id").Str
}

// Text sends a message and returns its id.
func (c *Client) Text(room, body string) (eventID string) {
	c.t.Helper()
	return c.Event(room, "m.room.message", J{"msgtype": "m.text", "body": body})
}

// State sets state and returns the event's id.
func (c *Client) State(room, typ, key string, content any) (eventID string) {
	c.t.Helper()
	return c.Must("PUT", Path("/rooms/%s/state/%s/%s", room, typ, key), content).JSON.Get("event_id").Str
}

// Redact redacts an event and returns the id of the redaction.
func (c *Client) Redact(room, event string) (eventID string) {
	c.t.Helper()
	return c.Must("PUT", Path("/rooms/%s/redact/%s/%s", room, event, Txn()), J{}).JSON.Get("event_id").Str
}

// Sync asks for what is new with these parameters beside timeout and since, and remembers next_batch. The first
// call is an initial sync.
func (c *Client) Sync(query url.Values) gjson.Result {
	c.t.Helper()
	q := url.Values{"timeout": {"0"}}
	if c.since != "" {
		q.Set("since", c.since)
	}
	for k, v := range query {
		q[k] = v
	}
	r := c.Must("GET", Path("/sync?")+q.Encode(), nil).JSON
	c.since = r.Get("next_batch").Str
	return r
}

// Since is the token of the last Sync.
func (c *Client) Since() string { return c.since }

// SyncFrom makes the next Sync go on from a token, or be initial without one.
func (c *Client) SyncFrom(token string) { c.since = token }

// Until syncs until an answer fulfils the condition, for at most a minute, and returns that answer.
func (c *Client) Until(what string, done func(gjson.Result) bool) gjson.Result {
	c.t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); {
		if r := c.Sync(url.Values{"timeout": {"1000"}}); done(r) {
			return r
		}
	}
	c.t.Fatalf("nothing in a minute of sync: %s", what)
	return gjson.Result{}
}

// Filter makes the query of a sync with a filter.
func Filter(filter any) url.Values {
	raw, err := json.Marshal(filter)
	if err != nil {
		panic(err) // filters of tests can be encoded
	}
	return url.Values{"filter": {string(raw)}}
}

// Room finds a room's part of an answer of /sync: section is join, invite, knock or leave.
func Room(sync gjson.Result, section, room string) gjson.Result {
	return sync.Get("rooms." + section).Get(Key(room))
}

// Key makes a path of gjson of a member's name, whatever is in it.
func Key(name string) string {
	return strings.NewReplacer(`\`, `\\`, `.`, `\.`, `*`, `\*`, `?`, `\?`, `|`, `\|`, `#`, `\#`, `@`, `\@`, `!`, `\!`, `{`, `\{`, `}`, `\}`, `:`, `\:`).Replace(name)
}

// IDs lists the event ids of an array of events.
func IDs(events gjson.Result) []string {
	ids := []string{}
	for _, e := range events.Array() {
		ids = append(ids, e.Get("event_id").Str)
	}
	return ids
}

// Find returns the state event of an array of events with a type and a state key, nothing if there is none.
func Find(events gjson.Result, typ, key string) gjson.Result {
	for _, e := range events.Array() {
		if k := e.Get("state_key"); e.Get("type").Str == typ && k.Exists() && k.Str == key {
			return e
		}
	}
	return gjson.Result{}
}

// Page is one answer of /messages.
type Page struct {
	Start, End string
	Events     []gjson.Result
	State      []gjson.Result
}

// Messages reads one page: dir is b or f; an empty token is left out.
func (c *Client) Messages(room, from, dir string, limit int, more url.Values) Page {
	c.t.Helper()
	q := url.Values{"dir": {dir}, "limit": {fmt.Sprint(limit)}}
	if from != "" {
		q.Set("from", from)
	}
	for k, v := range more {
		q[k] = v
	}
	r := c.Must("GET", Path("/rooms/%s/messages?", room)+q.Encode(), nil).JSON
	return Page{r.Get("start").Str, r.Get("end").Str, r.Get("chunk").Array(), r.Get("state").Array()}
}

// Walk reads a room page by page to its end and returns the ids of all events, as they came.
func (c *Client) Walk(room, from, dir string, limit int) []string {
	c.t.Helper()
	ids := []string{}
	for range 10_000 {
		p := c.Messages(room, from, dir, limit, nil)
		for _, e := range p.Events {
			ids = append(ids, e.Get("event_id").Str)
		}
		if p.End == "" {
			return ids
		}
		if p.End == from {
			c.t.Fatalf("/messages of %s stands still at %s", room, from)
		}
		from = p.End
	}
	c.t.Fatalf("/messages of %s does not end", room)
	return nil
}
