//go:build goexperiment.jsonv2

package pdu

import (
	jsonv2 "encoding/json/v2"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/crypto/canonicaljson"
	oracle "maunium.net/go/mautrix/federation/pdu"
	"maunium.net/go/mautrix/id"

	"github.com/myelin-im/myelin/internal/signing"
)

// These tests compare with an independent implementation, which knows versions
// 3 to 12. Where it departs from the specification is said where it is skipped.

func oracleParse(t *testing.T, raw []byte) *oracle.PDU {
	t.Helper()
	var p *oracle.PDU
	if err := jsonv2.Unmarshal(raw, &p); err != nil {
		t.Fatalf("%v in %s", err, raw)
	}
	return p
}

func oracleCanonical(t *testing.T, p *oracle.PDU) string {
	t.Helper()
	b, err := canonicaljson.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// compare holds an event that Parse took against the oracle.
func compare(t *testing.T, e *Event) {
	t.Helper()
	rv := id.RoomVersion(e.Version().ID)
	p := oracleParse(t, e.JSON())
	if got, err := p.GetEventID(rv); err != nil || string(got) != e.ID {
		t.Errorf("ID %s, the oracle says %s (%v)", e.ID, got, err)
	}
	if p.VerifyContentHash() == e.Redacted {
		t.Errorf("Redacted is %v for %s", e.Redacted, e.JSON())
	}
	if got := oracleCanonical(t, p); got != string(e.JSON()) {
		t.Errorf("JSON %s, the oracle says %s", e.JSON(), got)
	}
	if got := oracleCanonical(t, p.Clone().Redact(rv)); got != string(e.Redact().JSON()) {
		t.Errorf("redacted %s, the oracle says %s", e.Redact().JSON(), got)
	}
	if got := oracleCanonical(t, p.Clone().RedactForSignature(rv)); got != string(e.SigningBytes()) {
		t.Errorf("signing bytes %s, the oracle says %s", e.SigningBytes(), got)
	}
	if e.Type == TypeCreate && e.Version().RoomIDIsCreateHash {
		if got, err := p.GetRoomID(); err != nil || string(got) != e.RoomID {
			t.Errorf("room ID %s, the oracle says %s (%v)", e.RoomID, got, err)
		}
	}
}

func TestOracleRealEvents(t *testing.T) {
	for _, c := range realEvents {
		e, err := Parse(version(t, c.version), []byte(c.json))
		if err != nil {
			t.Fatal(err)
		}
		compare(t, e)
	}
}

func TestOracleRandomEvents(t *testing.T) {
	const seed = 20240229
	r := rand.New(rand.NewPCG(seed, 0))
	for i := range 4000 {
		n := 3 + r.IntN(10)
		event := randomEvent(r, n)
		e, err := Parse(Versions()[n-1], seal(event))
		if err != nil {
			t.Fatalf("event %d: %v", i, err)
		}
		if compare(t, e); t.Failed() {
			t.Fatalf("event %d of seed %d, version %d", i, seed, n)
		}
	}
}

// Signatures made by each side are checked by the other.
func TestOracleSignatures(t *testing.T) {
	key := testKey(t)
	keys := func(server string, keyID id.KeyID, _ time.Time) (id.SigningKey, time.Time, error) {
		return id.SigningKey(signing.EncodeBase64(publicKey(key))), time.Now().Add(time.Hour), nil
	}
	for _, v := range Versions()[2:] {
		rv := id.RoomVersion(v.ID)
		e := build(t, v, proto(v))
		p := oracleParse(t, e.JSON())
		if err := p.VerifySignature(rv, "example.org", keys); err != nil {
			t.Errorf("version %s: the oracle refuses our signature: %v", v.ID, err)
		}
		if err := p.Sign(rv, "other.example", "ed25519:2", key); err != nil {
			t.Fatal(err)
		}
		ours, err := Parse(v, []byte(oracleCanonical(t, p)))
		if err != nil || ours.ID != e.ID {
			t.Fatalf("version %s: %v, %v", v.ID, ours, err)
		}
		if err := ours.VerifySignature("other.example", "ed25519:2", publicKey(key)); err != nil {
			t.Errorf("version %s: the oracle's signature: %v", v.ID, err)
		}
	}
}

// randomEvent returns an event whose type and content touch the redaction rules.
func randomEvent(r *rand.Rand, n int) object {
	event := sample(n)
	types := []string{
		TypeCreate, TypeMember, TypePowerLevels, TypeJoinRules, TypeThirdPartyInvite, TypeHistoryVisibility, TypeRedaction, TypeAliases,
		"m.room.message", "m.room.name", "org.example.é\n\"",
	}
	names := strings.Fields(`ban events events_default invite kick notifications redact state_default users users_default membership displayname
		join_authorised_via_users_server third_party_invite creator room_version join_rule allow aliases history_visibility redacts reason body`)
	event["type"] = types[r.IntN(len(types))]
	content := object{}
	for range r.IntN(8) {
		content[names[r.IntN(len(names))]] = randomValue(r, 3)
	}
	// The oracle drops a third_party_invite without signed, widespread servers
	// leave an empty object.
	if _, ok := content["third_party_invite"]; ok {
		content["third_party_invite"] = object{"signed": randomValue(r, 2), "display_name": "x"}
	}
	event["content"] = content
	if r.IntN(2) == 0 {
		event["state_key"] = randomText(r)
	}
	// Not event_id, of which the oracle does not know that redaction keeps it.
	for _, name := range []string{"origin", "membership", "prev_state", "org.example.unknown"} {
		if r.IntN(4) == 0 {
			event[name] = randomValue(r, 2)
		}
	}
	// The oracle keeps redacts of old redactions, which the specification's lists
	// do not have.
	if r.IntN(4) == 0 && event["type"] != TypeRedaction {
		event["redacts"] = "$target"
	}
	if event["type"] == TypeCreate && n >= 12 {
		event["state_key"] = ""
		content["room_version"] = "12"
		delete(event, "room_id")
	}
	return event
}

func randomValue(r *rand.Rand, depth int) any {
	switch k := r.IntN(8); {
	case k == 0 && depth > 0:
		o := object{}
		for range r.IntN(4) {
			o[randomText(r)] = randomValue(r, depth-1)
		}
		return o
	case k == 1 && depth > 0:
		list := []any{}
		for range r.IntN(4) {
			list = append(list, randomValue(r, depth-1))
		}
		return list
	case k == 2:
		return r.IntN(2) == 0
	case k == 3:
		return nil
	case k < 6:
		return r.Int64N(2<<53-1) - (1<<53 - 1)
	}
	return randomText(r)
}

func randomText(r *rand.Rand) string {
	alphabet := []rune("abz\"\\/\x00\x1f\b\t\n\f\r\x7fé日\u2028\uFFFD\uFF5E😀")
	text := make([]rune, r.IntN(6))
	for i := range text {
		text[i] = alphabet[r.IntN(len(alphabet))]
	}
	return string(text)
}
