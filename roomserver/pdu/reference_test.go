package pdu

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
)

// This file is a second, naive implementation of hashing and redaction, on
// decoded maps and written from the specification's prose, for comparison.

type object = map[string]any

// naiveDecode reads JSON with numbers as they are written.
func naiveDecode(t testing.TB, raw []byte) object {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	var o object
	if err := d.Decode(&o); err != nil {
		t.Fatalf("%v in %s", err, raw)
	}
	return o
}

// naiveCanonical encodes a decoded value canonically, if its numbers are.
func naiveCanonical(value any) string {
	switch value := value.(type) {
	case object:
		var members []string
		for _, name := range slices.Sorted(maps.Keys(value)) {
			members = append(members, naiveString(name)+":"+naiveCanonical(value[name]))
		}
		return "{" + strings.Join(members, ",") + "}"
	case []any:
		var items []string
		for _, item := range value {
			items = append(items, naiveCanonical(item))
		}
		return "[" + strings.Join(items, ",") + "]"
	case string:
		return naiveString(value)
	case nil:
		return "null"
	}
	return fmt.Sprint(value)
}

func naiveString(s string) string {
	var b strings.Builder
	for _, r := range s {
		switch r {
		case '"', '\\':
			b.WriteString("\\" + string(r))
		case '\b':
			b.WriteString(`\b`)
		case '\f':
			b.WriteString(`\f`)
		case '\n':
			b.WriteString(`\n`)
		case '\r':
			b.WriteString(`\r`)
		case '\t':
			b.WriteString(`\t`)
		default:
			if r < ' ' {
				fmt.Fprintf(&b, `\u%04x`, r)
			} else {
				b.WriteRune(r)
			}
		}
	}
	return `"` + b.String() + `"`
}

func naiveWithout(o object, names ...string) object {
	o = maps.Clone(o)
	for _, name := range names {
		delete(o, name)
	}
	return o
}

func naiveContentHash(event object) string {
	hash := sha256.Sum256([]byte(naiveCanonical(naiveWithout(event, "unsigned", "signatures", "hashes"))))
	return base64.RawStdEncoding.EncodeToString(hash[:])
}

// naiveKept lists, for the version with this number, the members of an event and
// of the content of an event type that redaction keeps.
func naiveKept(n int, typ string) (event, content []string) {
	event = strings.Fields("event_id type room_id sender state_key content hashes signatures depth prev_events auth_events origin_server_ts")
	if n <= 10 {
		event = append(event, "prev_state", "origin", "membership")
	}
	switch typ {
	case "m.room.member":
		content = []string{"membership"}
		if n >= 9 {
			content = append(content, "join_authorised_via_users_server")
		}
	case "m.room.create":
		content = []string{"creator"}
		if n >= 11 {
			content = []string{"*"}
		}
	case "m.room.join_rules":
		content = []string{"join_rule"}
		if n >= 8 {
			content = append(content, "allow")
		}
	case "m.room.power_levels":
		content = strings.Fields("ban events events_default kick redact state_default users users_default")
		if n >= 11 {
			content = append(content, "invite")
		}
	case "m.room.aliases":
		if n <= 5 {
			content = []string{"aliases"}
		}
	case "m.room.history_visibility":
		content = []string{"history_visibility"}
	case "m.room.redaction":
		if n >= 11 {
			content = []string{"redacts"}
		}
	}
	return event, content
}

func naiveRedact(n int, event object) object {
	typ := event["type"].(string)
	keptEvent, keptContent := naiveKept(n, typ)
	out := object{}
	for _, name := range keptEvent {
		if value, ok := event[name]; ok {
			out[name] = value
		}
	}
	if slices.Contains(keptContent, "*") {
		return out
	}
	full, content := event["content"].(object), object{}
	for _, name := range keptContent {
		if value, ok := full[name]; ok {
			content[name] = value
		}
	}
	if invite, ok := full["third_party_invite"].(object); ok && n >= 11 && typ == "m.room.member" {
		content["third_party_invite"] = object{}
		if signed, ok := invite["signed"]; ok {
			content["third_party_invite"] = object{"signed": signed}
		}
	}
	out["content"] = content
	return out
}

func naiveID(n int, event object) string {
	if n <= 2 {
		return event["event_id"].(string)
	}
	hash := sha256.Sum256([]byte(naiveCanonical(naiveWithout(naiveRedact(n, event), "signatures", "unsigned"))))
	if n == 3 {
		return "$" + base64.RawStdEncoding.EncodeToString(hash[:])
	}
	return "$" + base64.RawURLEncoding.EncodeToString(hash[:])
}

// sample returns a valid event of version n, without a content hash, as a
// decoded object that a test may change.
func sample(n int) object {
	o := object{
		"type": "m.room.message", "room_id": "!room:example.org", "sender": "@alice:example.org",
		"content": object{"body": "hello", "msgtype": "m.text"}, "depth": json.Number("12"),
		"origin_server_ts": json.Number("1700000000000"),
		"prev_events":      []any{"$Rqnc-F-dvnEYJTyHq_iKxU2bZ1CI92-kuZq3a5lr5Zg"},
		"auth_events":      []any{"$X7GhHPJbkwbcpqpGqyjq1n4lVjDdYmZMXSCaf3ZSLEw", "$accqGxfvhBvMP4Sf6P7t3WgnaJK6UbonO2ZmwqSE5Sg"},
		"signatures":       object{"example.org": object{"ed25519:1": "c2lnbmF0dXJl"}},
	}
	if n <= 2 {
		ref := func(id string) []any {
			return []any{id, object{"sha256": "5jM4wQpv6lnBo7CLIghJuHdW+s2CMBJPUOGOC89ncos"}}
		}
		o["event_id"] = "$event:example.org"
		o["prev_events"] = []any{ref("$prev:example.org")}
		o["auth_events"] = []any{ref("$one:example.org"), ref("$two:example.org")}
	}
	if n >= 12 {
		o["room_id"] = "!mauT12AzsoqxV7Abvy_ApA-HNPK1LcT4GbP70_AOPyQ"
	}
	return o
}

// seal gives the event its content hash and returns its canonical JSON.
func seal(event object) []byte {
	event = maps.Clone(event)
	event["hashes"] = object{"sha256": naiveContentHash(event)}
	return []byte(naiveCanonical(event))
}

// eachVersion runs fn for all versions with their numbers.
func eachVersion(t *testing.T, fn func(t *testing.T, n int, v *Version)) {
	t.Helper()
	for i, v := range Versions() {
		t.Run("v"+v.ID, func(t *testing.T) { fn(t, i+1, v) })
	}
}
