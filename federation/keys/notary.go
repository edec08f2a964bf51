package keys

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/myelin-im/myelin/federation/client"
	"github.com/myelin-im/myelin/internal/signing"
)

// Criteria are what a notary's answer should fulfil: key ids, each with the time until which it should be valid, in
// milliseconds; 0 is now. Without key ids they are about all keys, until All.
type Criteria struct {
	Keys map[string]int64
	All  int64
}

// Notarised returns the key documents of a server with our signature added: those that are known, read anew if they do
// not fulfil the criteria or half of their lifetime is over. It is empty for a server that never answered.
//
// spec: server-server-api v1.19 "Querying Keys Through Another Server"
func (r *Ring) Notarised(ctx context.Context, server string, c Criteria) ([]json.RawMessage, error) {
	if server == r.cfg.ServerName {
		own, err := r.Own()
		return []json.RawMessage{own}, err
	}
	if _, ok := client.ParseName(server); !ok {
		return nil, nil
	}
	known, err := r.keysOf(ctx, server)
	if err != nil {
		return nil, err
	}
	if !r.fulfils(known, c) {
		if err := r.fetch(ctx, server, need{}); err != nil && ctx.Err() != nil {
			return nil, ctx.Err()
		} // of a server that does not answer, what is known is passed on
		if known, err = r.keysOf(ctx, server); err != nil {
			return nil, err
		}
	}
	documents := [][]byte{}
	for id, k := range known {
		if _, asked := c.Keys[id]; (len(c.Keys) == 0 || asked) && !slices.ContainsFunc(documents, func(d []byte) bool { return string(d) == string(k.raw) }) {
			documents = append(documents, k.raw)
		}
	}
	slices.SortFunc(documents, func(a, b []byte) int { return strings.Compare(string(a), string(b)) })
	signed := make([]json.RawMessage, 0, len(documents))
	for _, d := range documents {
		s, err := signing.SignJSON(d, r.cfg.ServerName, r.cfg.KeyID, r.cfg.Key)
		if err != nil {
			return nil, fmt.Errorf("sign the keys of %s: %w", server, err)
		}
		signed = append(signed, s)
	}
	return signed, nil
}

// fulfils tells whether what is known is fresh enough to be passed on.
func (r *Ring) fulfils(known map[string]publicKey, c Criteria) bool {
	now := r.now()
	for _, k := range known {
		if now < k.fetched+refetch.Milliseconds() {
			return true // asking again would bring nothing else
		}
	}
	enough := func(k publicKey, least int64) bool {
		if least <= 0 {
			least = now
		}
		if k.expired != 0 {
			return true // it will not become valid again
		}
		return k.validUntil >= least && now < k.fetched+(k.validUntil-k.fetched)/2
	}
	for id, least := range c.Keys {
		if k, ok := known[id]; !ok || !enough(k, least) {
			return false
		}
	}
	if len(c.Keys) > 0 {
		return true
	}
	for _, k := range known {
		if k.expired == 0 && enough(k, c.All) {
			return true
		}
	}
	return false
}
