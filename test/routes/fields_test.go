package routes

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/myelin-im/myelin/homeserver"

	. "github.com/myelin-im/myelin/test/harness"
)

// A field is what the specification says of a member of a body.
type field int

const (
	text    field = iota // a string
	truth                // a boolean
	integer              // an integer
	object               // an object
	strs                 // a list of strings
	objects              // a list of objects
	anyJSON              // anything
)

func (f field) String() string {
	return [...]string{"text", "truth", "integer", "object", "list of texts", "list of objects", "anything"}[f]
}

// values has one of each kind of JSON.
var values = map[string]any{
	"text": "text", "truth": true, "integer": 7, "fraction": 1.5, "huge": json.RawMessage("1e400"), "object": J{"a": 1},
	"empty list": []any{}, "list of texts": []string{"a"}, "list of integers": []int{1}, "list of objects": []J{{"a": 1}},
}

// fits tells whether a value is of a field's type. Where the type allows it, the value may still be refused.
func (f field) fits(kind string) bool {
	switch f {
	case text, truth, integer, object:
		return kind == f.String()
	case strs:
		return kind == "list of texts" || kind == "empty list"
	case objects:
		return kind == "list of objects" || kind == "empty list"
	}
	return true
}

// bodies are the members that routes read, and what else a request needs for its members to be looked at.
var bodies = map[string]struct {
	fields map[string]field
	rest   J
}{
	"POST /register": {map[string]field{"username": text, "password": text, "device_id": text, "initial_device_display_name": text, "inhibit_login": truth, "refresh_token": truth, "auth": object},
		J{"username": "somebody", "password": "x"}},
	"POST /login": {map[string]field{"type": text, "identifier": object, "password": text, "token": text, "device_id": text, "initial_device_display_name": text, "refresh_token": truth, "user": text},
		J{"type": "m.login.password", "identifier": J{"type": "m.id.user", "user": "nobody"}, "password": "x"}},
	"POST /refresh":                                         {map[string]field{"refresh_token": text}, J{"refresh_token": "x"}},
	"POST /account/deactivate":                              {map[string]field{"auth": object, "erase": truth}, J{}},
	"POST /account/password":                                {map[string]field{"auth": object, "new_password": text, "logout_devices": truth}, J{"new_password": "x"}},
	"POST /delete_devices":                                  {map[string]field{"auth": object, "devices": strs}, J{"devices": []string{"X"}}},
	"PUT /devices/{deviceId}":                               {map[string]field{"display_name": text}, J{"display_name": 1}},
	"POST /createRoom":                                      {map[string]field{"creation_content": object, "initial_state": objects, "invite": strs, "invite_3pid": anyJSON, "is_direct": truth, "name": text, "power_level_content_override": object, "preset": text, "room_alias_name": text, "room_version": text, "topic": text, "visibility": text}, J{"preset": "none"}},
	"POST /join/{roomIdOrAlias}":                            {map[string]field{"reason": text}, J{"reason": 1}},
	"POST /knock/{roomIdOrAlias}":                           {map[string]field{"reason": text}, J{"reason": 1}},
	"POST /rooms/{roomId}/join":                             {map[string]field{"reason": text}, J{"reason": 1}},
	"POST /rooms/{roomId}/leave":                            {map[string]field{"reason": text}, J{"reason": 1}},
	"POST /rooms/{roomId}/invite":                           {map[string]field{"user_id": text, "reason": text}, J{"user_id": "@nobody"}},
	"POST /rooms/{roomId}/kick":                             {map[string]field{"user_id": text, "reason": text}, J{"user_id": "@nobody"}},
	"POST /rooms/{roomId}/ban":                              {map[string]field{"user_id": text, "reason": text}, J{"user_id": "@nobody"}},
	"POST /rooms/{roomId}/unban":                            {map[string]field{"user_id": text, "reason": text}, J{"user_id": "@nobody"}},
	"POST /user/{userId}/filter":                            {map[string]field{"event_fields": strs, "event_format": text, "presence": object, "account_data": object, "room": object}, J{"event_format": "x"}},
	"PUT /directory/room/{roomAlias}":                       {map[string]field{"room_id": text}, J{"room_id": "x"}},
	"PUT /profile/{userId}/{keyName}":                       {map[string]field{"displayname": text}, J{}},
	"PUT /user/{userId}/rooms/{roomId}/tags/{tag}":          {map[string]field{"order": anyJSON}, J{"order": "x"}},
	"PUT /pushrules/global/{kind}/{ruleId}":                 {map[string]field{"actions": anyJSON, "conditions": objects, "pattern": text}, J{}},
	"PUT /pushrules/global/{kind}/{ruleId}/actions":         {map[string]field{"actions": anyJSON}, J{"actions": "x"}},
	"PUT /pushrules/global/{kind}/{ruleId}/enabled":         {map[string]field{"enabled": truth}, J{}},
	"PUT /rooms/{roomId}/redact/{eventId}/{txnId}":          {map[string]field{"reason": text}, J{"reason": 1}},
	"POST /rooms/{roomId}/read_markers":                     {map[string]field{"m.fully_read": text, "m.read": text, "m.read.private": text}, J{"m.read": 1}},
	"POST /rooms/{roomId}/receipt/{receiptType}/{eventId}":  {map[string]field{"thread_id": text}, J{"thread_id": 1}},
	"PUT /rooms/{roomId}/typing/{userId}":                   {map[string]field{"typing": truth, "timeout": integer}, J{"typing": 1}},
	"PUT /presence/{userId}/status":                         {map[string]field{"presence": text, "status_msg": text}, J{"presence": "x"}},
	"PUT /rooms/{roomId}/send/{eventType}/{txnId}":          {map[string]field{}, nil},
	"PUT /rooms/{roomId}/state/{eventType}/{stateKey}":      {map[string]field{}, nil},
	"PUT /user/{userId}/account_data/{type}":                {map[string]field{}, nil},
	"PUT /user/{userId}/rooms/{roomId}/account_data/{type}": {map[string]field{}, nil},
	"POST /logout":                                          {map[string]field{}, nil},
	"POST /logout/all":                                      {map[string]field{}, nil},
	"POST /rooms/{roomId}/forget":                           {map[string]field{}, nil},
	"POST /user/{userId}/openid/request_token":              {map[string]field{}, nil},
	"POST /register/email/requestToken":                     {map[string]field{"client_secret": text, "email": text, "send_attempt": integer, "next_link": text}, J{"client_secret": "x", "email": "x", "send_attempt": 1}},
	"POST /register/msisdn/requestToken":                    {map[string]field{}, nil},
	"POST /account/password/email/requestToken":             {map[string]field{"client_secret": text, "email": text, "send_attempt": integer, "next_link": text}, J{"client_secret": "x", "email": "x", "send_attempt": 1}},
	"POST /account/password/msisdn/requestToken":            {map[string]field{}, nil},
	"POST /account/3pid/email/requestToken":                 {map[string]field{"client_secret": text, "email": text, "send_attempt": integer, "next_link": text}, J{"client_secret": "x", "email": "x", "send_attempt": 1}},
	"POST /account/3pid/msisdn/requestToken":                {map[string]field{}, nil},
	"POST /account/3pid":                                    {map[string]field{"three_pid_creds": object}, J{}},
	"POST /account/3pid/add":                                {map[string]field{"auth": object, "sid": text, "client_secret": text}, J{"sid": "x", "client_secret": "x"}},
	"POST /account/3pid/bind":                               {map[string]field{"client_secret": text, "id_server": text, "id_access_token": text, "sid": text}, J{"client_secret": "x", "id_server": "x", "id_access_token": "x", "sid": "x"}},
	"POST /account/3pid/delete":                             {map[string]field{"medium": text, "address": text, "id_server": text}, J{"medium": "email", "address": "x"}},
	"POST /account/3pid/unbind":                             {map[string]field{"medium": text, "address": text, "id_server": text}, J{"medium": "email", "address": "x"}},
	"POST /pushers/set":                                     {map[string]field{"app_id": text, "pushkey": text, "kind": text, "app_display_name": text, "device_display_name": text, "profile_tag": text, "lang": text, "data": object, "append": truth}, J{"app_id": "x"}},
	"POST /rooms/{roomId}/report":                           {map[string]field{"reason": text}, J{"reason": 1}},
	"POST /rooms/{roomId}/report/{eventId}":                 {map[string]field{"reason": text}, J{"reason": 1}},
	"POST /users/{userId}/report":                           {map[string]field{"reason": text}, J{"reason": 1}},
	"POST /rooms/{roomId}/upgrade":                          {map[string]field{"new_version": text, "additional_creators": strs}, J{"new_version": "x"}},
	"PUT /directory/list/room/{roomId}":                     {map[string]field{"visibility": text}, J{"visibility": "x"}},
	"POST /publicRooms":                                     {map[string]field{"limit": integer, "since": text, "filter": object, "include_all_networks": truth, "third_party_instance_id": text}, J{}},
	"POST /search":                                          {map[string]field{"search_categories": object}, J{}},
	"POST /keys/upload":                                     {map[string]field{"device_keys": object, "one_time_keys": object, "fallback_keys": object}, J{}},
	"POST /keys/query":                                      {map[string]field{"device_keys": object, "timeout": integer}, J{}},
	"POST /keys/claim":                                      {map[string]field{"one_time_keys": object, "timeout": integer}, J{}},
	"POST /keys/device_signing/upload":                      {map[string]field{"master_key": object, "self_signing_key": object, "user_signing_key": object, "auth": object}, J{}},
	"POST /keys/signatures/upload":                          {map[string]field{}, nil},
	"PUT /sendToDevice/{eventType}/{txnId}":                 {map[string]field{"messages": object}, J{}},
	"POST /room_keys/version":                               {map[string]field{"algorithm": text, "auth_data": object}, J{"algorithm": 1, "auth_data": 1}},
	"PUT /room_keys/version/{version}":                      {map[string]field{"algorithm": text, "auth_data": object, "version": text}, J{"algorithm": "x", "auth_data": J{}}},
	"PUT /room_keys/keys":                                   {map[string]field{"rooms": object}, J{}},
	"PUT /room_keys/keys/{roomId}":                          {map[string]field{"sessions": object}, J{}},
	"PUT /room_keys/keys/{roomId}/{sessionId}":              {map[string]field{"first_message_index": integer, "forwarded_count": integer, "is_verified": truth, "session_data": object}, J{}},
	"POST /user_directory/search":                           {map[string]field{"search_term": text, "limit": integer}, J{"search_term": "x"}},
}

// TestFields gives every member of every body a value of each kind. A wrong type is refused, and nothing has happened.
func TestFields(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		watcher := s.Register(t, "watcher")
		n := 0
		known := map[string]bool{}
		listed := map[string]bool{}
		for _, e := range endpoints(t) {
			listed[e.method+"\t"+e.path] = true
		}
		for _, row := range homeserver.Routes() {
			if row.Method == "GET" || row.Method == "DELETE" || row.Who == "appservice" || !strings.HasPrefix(row.Path, "/_matrix/client/v3") {
				continue
			}
			route := row.Method + " " + strings.TrimPrefix(row.Path, "/_matrix/client/v3")
			body, ok := bodies[route]
			if !ok {
				if listed[row.Method+"\t"+row.Path] {
					t.Errorf("%s: say in this test what its body holds", route)
				}
				continue
			}
			known[route] = true
			t.Run(route, func(t *testing.T) {
				n++
				c := newCaller(t, s, watcher.With(t), n, row.Who)
				before := c.place()
				for _, right := range []bool{false, true} {
					for _, name := range slices.Sorted(maps.Keys(body.fields)) {
						for kind, value := range values {
							if body.fields[name].fits(kind) != right {
								continue
							}
							request := maps.Clone(body.rest)
							request[name] = value
							what := fmt.Sprintf("%s with %s in %s", route, kind, name)
							a := c.Do(row.Method, c.path(row.Path), request)
							if !right {
								want(t, what, a, 400, "M_BAD_JSON", "M_INVALID_PARAM", "M_NOT_JSON", "M_MISSING_PARAM")
							} else if a.Status >= 400 {
								refused(t, what, a)
							}
						}
					}
					if after := c.place(); !right && after != before {
						t.Errorf("requests that were refused moved the log from %s to %s", before, after)
					}
				}
			})
		}
		for route := range bodies {
			if !known[route] {
				t.Errorf("%s is not served", route)
			}
		}
	})
}
