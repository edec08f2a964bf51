package e2ee

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/tidwall/gjson"

	"github.com/myelin-im/myelin/internal/canonicaljson"
	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/storage"
)

const (
	// maxClaims bounds the keys of one request.
	maxClaims = 10_000
	// claimsPerWrite bounds the keys of one unit, so that it does not hold up others.
	claimsPerWrite = 200
	// claimedFor is how long the name of a claimed key is remembered.
	claimedFor = 7 * 24 * time.Hour
)

// wantedKeys is from user to device to algorithm.
type wantedKeys map[string]map[string]string

type claimRequest struct {
	Timeout     *int64     `json:"timeout"`
	OneTimeKeys wantedKeys `json:"one_time_keys" required:"true"`
}

// claimed is from user to device to the keys, "algorithm:id" to JSON.
type claimed map[string]map[string]map[string]json.RawMessage

type claimResponse struct {
	Failures    map[string]json.RawMessage `json:"failures"`
	OneTimeKeys claimed                    `json:"one_time_keys"`
}

// claim: client-server API v1.19, POST /keys/claim.
func (a *API) claim(ctx context.Context, by *httpapi.Caller, in *claimRequest) (*claimResponse, error) {
	local, remote, err := a.splitClaims(in.OneTimeKeys)
	if err != nil {
		return nil, err
	}
	out := &claimResponse{Failures: map[string]json.RawMessage{}, OneTimeKeys: claimed{}}
	if err := a.claimLocal(ctx, local, out.OneTimeKeys); err != nil {
		return nil, err
	}
	answers := a.askServers(ctx, patience(in.Timeout), remote, func(ctx context.Context, server string, wanted wantedKeys) (json.RawMessage, error) {
		body, err := json.Marshal(map[string]wantedKeys{"one_time_keys": wanted})
		if err != nil {
			return nil, err
		}
		return a.remote.ClaimKeys(ctx, server, body)
	})
	for _, answer := range answers {
		if answer.err != nil {
			out.Failures[answer.server] = failure(answer.err)
			continue
		}
		takeClaimed(answer.body, remote[answer.server], out.OneTimeKeys)
	}
	return out, nil
}

// splitClaims sorts what is wanted by server.
func (a *API) splitClaims(wanted wantedKeys) (local []claim, remote map[string]wantedKeys, err error) {
	total := 0
	remote = map[string]wantedKeys{}
	for user, devices := range wanted {
		server, ok := serverOf(user)
		if !ok {
			continue // nobody has such a name
		}
		if total += len(devices); total > maxClaims {
			return nil, nil, mxerr.TooLarge("These are too many keys at once")
		}
		if server != a.rooms.Name() {
			if remote[server] == nil {
				remote[server] = wantedKeys{}
			}
			remote[server][user] = devices
			continue
		}
		for device, algorithm := range devices {
			local = append(local, claim{user, device, algorithm})
		}
	}
	// Two who claim keys of the same users must not wait for each other's locks.
	slices.SortFunc(local, func(a, b claim) int {
		return cmp.Or(strings.Compare(a.user, b.user), strings.Compare(a.device, b.device))
	})
	return local, remote, nil
}

// claim asks for one key.
type claim struct{ user, device, algorithm string }

// claimLocal claims keys of local devices. Where there is none, nothing is added.
func (a *API) claimLocal(ctx context.Context, claims []claim, out claimed) error {
	for len(claims) > 0 {
		n := min(len(claims), claimsPerWrite)
		now := a.nowMS()
		var found []oneTimeKey
		err := a.db.Write(ctx, func(tx *storage.Tx) (err error) {
			found = make([]oneTimeKey, n)
			users := map[string]bool{}
			for i, c := range claims[:n] {
				if found[i], err = claimKey(tx, c, now); err != nil {
					return err
				}
				if found[i].content != nil {
					users[c.user] = true
				}
			}
			if len(users) == 0 {
				return nil
			}
			pos, err := tx.Position()
			for user := range users {
				tx.Notice(storage.Notice{Pos: pos, Kind: storage.OneTimeKeys, User: user})
			}
			return err
		})
		if err != nil {
			return fmt.Errorf("claim keys: %w", err)
		}
		for i, c := range claims[:n] {
			if found[i].content != nil {
				out.add(c.user, c.device, c.algorithm+":"+found[i].id, found[i].content)
			}
		}
		claims = claims[n:]
	}
	return nil
}

func (c claimed) add(user, device, name string, key json.RawMessage) {
	if c[user] == nil {
		c[user] = map[string]map[string]json.RawMessage{}
	}
	c[user][device] = map[string]json.RawMessage{name: key}
}

// claimKey takes a device's oldest one-time key, or else its fallback key; content is nil if there is neither.
func claimKey(tx *storage.Tx, c claim, now int64) (k oneTimeKey, err error) {
	if err := tx.Lock("keys " + c.user); err != nil {
		return k, err
	}
	found, err := tx.Get(`UPDATE one_time_keys SET claimed_ts = $4 WHERE user_id = $1 AND device_id = $2 AND algorithm = $3 AND key_id = (
			SELECT key_id FROM one_time_keys WHERE user_id = $1 AND device_id = $2 AND algorithm = $3 AND claimed_ts IS NULL
			ORDER BY seq, key_id LIMIT 1)
		RETURNING key_id, content`, []any{c.user, c.device, c.algorithm, now}, &k.id, &k.content)
	if err != nil || found {
		return k, err
	}
	_, err = tx.Get(`UPDATE fallback_keys SET used = $4 WHERE user_id = $1 AND device_id = $2 AND algorithm = $3 RETURNING key_id, content`,
		[]any{c.user, c.device, c.algorithm, true}, &k.id, &k.content)
	return k, err
}

// takeClaimed adds from another server's answer what it was asked for.
func takeClaimed(body json.RawMessage, wanted wantedKeys, out claimed) {
	gjson.GetBytes(body, "one_time_keys").ForEach(func(user, devices gjson.Result) bool {
		devices.ForEach(func(device, keys gjson.Result) bool {
			algorithm, asked := wanted[user.Str][device.Str]
			if !asked || !keys.IsObject() {
				return true
			}
			keys.ForEach(func(name, key gjson.Result) bool {
				prefix := algorithm + ":"
				if len(name.Str) > len(prefix) && name.Str[:len(prefix)] == prefix && len(key.Raw) <= maxKey {
					if canon, err := canonicaljson.Canonical([]byte(key.Raw), canonicaljson.Lax); err == nil {
						out.add(user.Str, device.Str, name.Str, canon)
					}
					return false
				}
				return true
			})
			return true
		})
		return true
	})
}

type serverClaimRequest struct {
	OneTimeKeys wantedKeys `json:"one_time_keys" required:"true"`
}

type serverClaimResponse struct {
	OneTimeKeys claimed `json:"one_time_keys"`
}

// serverClaim: server-server API v1.19, POST /user/keys/claim.
func (a *API) serverClaim(ctx context.Context, _ *httpapi.Caller, in *serverClaimRequest) (*serverClaimResponse, error) {
	local, _, err := a.splitClaims(in.OneTimeKeys)
	if err != nil {
		return nil, err
	}
	out := &serverClaimResponse{OneTimeKeys: claimed{}}
	return out, a.claimLocal(ctx, local, out.OneTimeKeys)
}
