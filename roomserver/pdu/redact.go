package pdu

import (
	"fmt"

	"github.com/myelin-im/myelin/internal/canonicaljson"
)

// Redact returns the event stripped to what its room version protects. The ID
// stays, and so do the signatures, which cover no more than that.
//
// spec: rooms "Redactions"
func (e *Event) Redact() *Event {
	if e.Redacted {
		return e
	}
	own := appendRedacted(make([]byte, 0, len(e.json)), e.version, e.Type, e.json, true)
	f := split(own)
	r, err := decode(e.version, own, &f)
	if err != nil {
		// The members that decode looks at all survive redaction.
		panic(fmt.Sprintf("redact %s: %v", e.ID, err))
	}
	r.ID, r.RoomID, r.Redacted = e.ID, e.RoomID, true
	return r
}

// appendSigned appends what signatures and the reference hash cover: the
// redacted event without signatures.
func (e *Event) appendSigned(dst []byte) []byte {
	return appendRedacted(dst, e.version, e.Type, e.json, false)
}

func appendRedacted(dst []byte, v *Version, typ string, event []byte, signatures bool) []byte {
	start := len(dst)
	dst = append(dst, '{')
	for w := canonicaljson.Walk(event); w.Next(); {
		switch string(w.Name) {
		case "auth_events", "depth", "event_id", "hashes", "origin_server_ts", "prev_events", "room_id", "sender", "state_key", "type":
			dst = appendMember(dst, start, w.Name, w.Value)
		case "membership", "origin", "prev_state":
			if !v.UpdatedRedaction {
				dst = appendMember(dst, start, w.Name, w.Value)
			}
		case "signatures":
			if signatures {
				dst = appendMember(dst, start, w.Name, w.Value)
			}
		case "content":
			dst = appendMember(dst, start, w.Name, nil)
			dst = appendRedactedContent(dst, v, typ, w.Value)
		}
	}
	return append(dst, '}')
}

func appendRedactedContent(dst []byte, v *Version, typ string, content []byte) []byte {
	if typ == TypeCreate && v.UpdatedRedaction {
		return append(dst, content...)
	}
	start := len(dst)
	dst = append(dst, '{')
	for w := canonicaljson.Walk(content); w.Next(); {
		switch {
		case protected(v, typ, string(w.Name)):
			dst = appendMember(dst, start, w.Name, w.Value)
		case v.UpdatedRedaction && typ == TypeMember && string(w.Name) == "third_party_invite" && w.Value[0] == '{':
			// Only the signed key of it stays. An object without one becomes
			// empty rather than vanishing: that is what widespread servers do,
			// and the event's ID depends on it.
			dst = appendMember(dst, start, w.Name, nil)
			inner := len(dst)
			dst = append(dst, '{')
			if signed := canonicaljson.Member(w.Value, "signed"); signed != nil {
				dst = appendMember(dst, inner, []byte("signed"), signed)
			}
			dst = append(dst, '}')
		}
	}
	return append(dst, '}')
}

// protected reports whether a member of an event's content survives redaction.
func protected(v *Version, typ, name string) bool {
	switch typ {
	case TypeMember:
		return name == "membership" || name == "join_authorised_via_users_server" && v.RestrictedJoinsFix
	case TypeCreate:
		return name == "creator"
	case TypeJoinRules:
		return name == "join_rule" || name == "allow" && v.RestrictedJoins
	case TypePowerLevels:
		switch name {
		case "ban", "events", "events_default", "kick", "redact", "state_default", "users", "users_default":
			return true
		case "invite":
			return v.UpdatedRedaction
		}
	case TypeAliases:
		return name == "aliases" && v.SpecialAliasAuth
	case TypeHistoryVisibility:
		return name == "history_visibility"
	case TypeRedaction:
		return name == "redacts" && v.RedactsInContent
	}
	return false
}
