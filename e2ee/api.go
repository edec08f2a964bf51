package e2ee

import (
	"context"
	"embed"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/myelin-im/myelin/accounts"
	"github.com/myelin-im/myelin/internal/cache"
	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/memo"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/internal/ratelimit"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/storage"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Schema is the part of the database that belongs to this package.
var Schema = storage.Schema{Feature: "e2ee", FS: migrations}

// Remote is what this package asks other servers for. Each call ends within the context's time; the answers are JSON
// objects that nobody has checked.
type Remote interface {
	// QueryKeys posts to /user/keys/query.
	QueryKeys(ctx context.Context, server string, body json.RawMessage) (json.RawMessage, error)
	// ClaimKeys posts to /user/keys/claim.
	ClaimKeys(ctx context.Context, server string, body json.RawMessage) (json.RawMessage, error)
	// UserDevices gets /user/devices/{userId}.
	UserDevices(ctx context.Context, server, userID string) (json.RawMessage, error)
}

// Deps are the other parts of the server that this package stands on.
type Deps struct {
	// DB must have been opened with Schema.
	DB *storage.DB
	// Rooms knows who shares rooms with whom.
	Rooms *roomserver.Server
	// Remote reaches other servers; nil: there are none.
	Remote Remote
	// Undelivered is how long messages wait for the devices of a server that does not take them; 0 is for ever.
	Undelivered time.Duration
	// Log gets what operators should know.
	Log *logrus.Entry
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// API is end-to-end encryption of one server. It is safe for concurrent use.
type API struct {
	db       *storage.DB
	rooms    *roomserver.Server
	accounts *accounts.API
	remote   Remote
	log      *logrus.Entry
	now      func() time.Time

	changes    *changeLog
	identities *cache.Cache[string, *identity]
	signatures *memo.Memo[string, map[string][]signature] // made by a user, by whose keys they are on
	counts     *memo.Memo[string, map[string]KeyCounts]
	inboxes    *inboxes
	overfull   overfull
	backlogs   backlogs
	prune      pruner
	follower   follower
	fetches    sync.Map // remote user id to *fetch

	undelivered time.Duration // as in Deps
}

const (
	// maxIdentities bounds the keys of users that are kept in memory, in bytes.
	maxIdentities = 64 << 20
	// maxSigners bounds the users whose signatures of others' keys are kept in memory, maxCounted those whose one-time keys
	// were counted.
	maxSigners = 20_000
	maxCounted = 20_000
)

// New makes the API. It must be called before the first write to the database. SetAccounts completes it.
func New(deps Deps) (*API, error) {
	if deps.DB == nil || deps.Rooms == nil || deps.Log == nil {
		return nil, errors.New("e2ee: database, rooms and log are required")
	}
	if deps.Now == nil {
		deps.Now = time.Now
	}
	a := &API{db: deps.DB, rooms: deps.Rooms, remote: deps.Remote, log: deps.Log, now: deps.Now, changes: newChangeLog(deps.DB.Head())}
	a.identities = cache.New[string, *identity](maxIdentities)
	a.signatures = memo.New(maxSigners, a.readSignatures)
	a.counts = memo.New(maxCounted, a.readCounts)
	a.inboxes = newInboxes(deps.DB.Head())
	a.overfull = overfull{limit: maxInbox, due: make(chan inboxKey, maxDue), left: cache.New[inboxKey, *atomic.Int64](maxInboxes)}
	a.backlogs, a.undelivered = newBacklogs(), deps.Undelivered
	a.follower.init(deps.DB.Head())
	deps.DB.Subscribe(a.committed)
	deps.DB.Watch(a.follower.published)
	return a, nil
}

// SetAccounts names the accounts, which are made after this package because they call its Hooks. It must be called
// before the first request is served.
func (a *API) SetAccounts(accounts *accounts.API) { a.accounts = accounts }

// committed takes note of a batch. It is called in commit order, before the log's head advances.
func (a *API) committed(batch []storage.Notice, _ int64) {
	for i := range batch {
		switch n := &batch[i]; n.Kind {
		case storage.DeviceKeys:
			a.changes.add(n.Pos, n.User, false)
			a.identities.Delete(n.User)
			a.signatures.Changed(n.User)
		case storage.OneTimeKeys:
			a.counts.Changed(n.User)
		case storage.DeviceList:
			a.changes.add(n.Pos, n.User, true)
			a.identities.Delete(n.User)
			a.counts.Changed(n.User)
		case storage.ToDevice:
			a.inboxes.arrived(n.User, n.Pos)
		}
	}
}

// Endpoints lists the endpoints of this package.
func (a *API) Endpoints() []httpapi.Endpoint {
	const (
		v3      = "/_matrix/client/v3"
		backup  = v3 + "/room_keys"
		signing = "/keys/device_signing/upload"
		fed     = "/_matrix/federation/v1/user"
		anyUser = httpapi.User | httpapi.Guest
		get     = http.MethodGet
		post    = http.MethodPost
		put     = http.MethodPut
		del     = http.MethodDelete
		keys    = ratelimit.Keys
		msc3814 = "/_matrix/client/unstable/org.matrix.msc3814.v1/dehydrated_device"
	)
	return []httpapi.Endpoint{
		httpapi.New(post, v3+"/keys/upload", anyUser, keys, a.upload),
		httpapi.New(post, v3+"/keys/query", anyUser, keys, a.query),
		httpapi.New(post, v3+"/keys/claim", anyUser, keys, a.claim),
		httpapi.New(post, v3+signing, httpapi.User, keys, a.uploadCrossSigning),
		httpapi.New(post, "/_matrix/client/unstable"+signing, httpapi.User, keys, a.uploadCrossSigning), // matrix-js-sdk knows no other
		httpapi.New(post, v3+"/keys/signatures/upload", httpapi.User, keys, a.uploadSignatures),
		httpapi.New(put, v3+"/sendToDevice/{eventType}/{txnId}", anyUser, ratelimit.ToDevice, a.sendToDevice).WithMaxBody(maxToDeviceBody),

		httpapi.New(post, backup+"/version", httpapi.User, keys, a.createBackup),
		httpapi.New(get, backup+"/version", httpapi.User, keys, a.latestBackup),
		httpapi.New(get, backup+"/version/{version}", httpapi.User, keys, a.getBackup),
		httpapi.New(put, backup+"/version/{version}", httpapi.User, keys, a.putBackup),
		httpapi.New(del, backup+"/version/{version}", httpapi.User, keys, a.deleteBackup),
		httpapi.New(put, backup+"/keys", httpapi.User, keys, a.putBackupKeys).WithMaxBody(maxBackupBody),
		httpapi.New(put, backup+"/keys/{roomId}", httpapi.User, keys, a.putBackupRoom).WithMaxBody(maxBackupBody),
		httpapi.New(put, backup+"/keys/{roomId}/{sessionId}", httpapi.User, keys, a.putBackupSession),
		httpapi.New(get, backup+"/keys", httpapi.User, keys, a.getBackupKeys),
		httpapi.New(get, backup+"/keys/{roomId}", httpapi.User, keys, a.getBackupRoom),
		httpapi.New(get, backup+"/keys/{roomId}/{sessionId}", httpapi.User, keys, a.getBackupSession),
		httpapi.New(del, backup+"/keys", httpapi.User, keys, a.deleteBackupKeys),
		httpapi.New(del, backup+"/keys/{roomId}", httpapi.User, keys, a.deleteBackupRoom),
		httpapi.New(del, backup+"/keys/{roomId}/{sessionId}", httpapi.User, keys, a.deleteBackupSession),

		httpapi.New(put, msc3814, httpapi.User, keys, a.putDehydrated),
		httpapi.New(get, msc3814, httpapi.User, keys, a.getDehydrated),
		httpapi.New(del, msc3814, httpapi.User, keys, a.deleteDehydrated),
		httpapi.New(get, msc3814+"/{deviceId}/events", httpapi.User, keys, a.dehydratedEvents),
		httpapi.New(post, msc3814+"/{deviceId}/events", httpapi.User, keys, a.dehydratedEventsDraft),

		httpapi.New(post, fed+"/keys/query", httpapi.Server, ratelimit.Federation, a.serverQuery),
		httpapi.New(post, fed+"/keys/claim", httpapi.Server, ratelimit.Federation, a.serverClaim),
		httpapi.New(get, fed+"/devices/{userId}", httpapi.Server, ratelimit.Federation, a.serverDevices),
	}
}

// Hooks is what becomes of this package's data with devices and accounts.
func (a *API) Hooks() accounts.Hooks {
	return accounts.Hooks{
		DeviceNamed:    checkDeviceName,
		DevicesDeleted: a.devicesDeleted,
		DeviceRenamed:  noteNews,
		Deactivated:    a.deactivated,
	}
}

// checkDeviceName refuses a device the name of a cross-signing key of its user. The names of both are used alike when they
// are verified, so that one could pass for the other.
func checkDeviceName(tx *storage.Tx, userID, deviceID string) error {
	taken, err := tx.Get(`SELECT usage FROM cross_signing_keys WHERE user_id = $1 AND public_key = $2`, []any{userID, deviceID}, new(string))
	if err == nil && taken {
		err = mxerr.InvalidParam("A cross-signing key has that name")
	}
	return err
}

// devicesDeleted deletes what there is of devices.
func (a *API) devicesDeleted(tx *storage.Tx, userID string, deviceIDs []string) error {
	for _, id := range deviceIDs {
		for _, table := range []string{"one_time_keys", "fallback_keys", "to_device", "dehydrated_devices"} {
			if _, err := tx.Exec(`DELETE FROM `+table+` WHERE user_id = $1 AND device_id = $2`, userID, id); err != nil {
				return err
			}
		}
		if _, err := tx.Exec(`DELETE FROM key_signatures WHERE user_id = $1 AND target = $2`, userID, id); err != nil {
			return err
		}
		n, err := tx.Exec(`DELETE FROM device_keys WHERE user_id = $1 AND device_id = $2`, userID, id)
		if err != nil {
			return err
		}
		if n > 0 {
			if err := noteNews(tx, userID, id); err != nil {
				return err
			}
		}
	}
	return nil
}

// deactivated deletes the identity and the backups of an account that ends. Its devices were deleted before.
func (a *API) deactivated(tx *storage.Tx, userID string, _ bool) error {
	for _, table := range []string{"key_backup_sessions", "key_backups", "dehydrated_devices"} {
		if _, err := tx.Exec(`DELETE FROM `+table+` WHERE user_id = $1`, userID); err != nil {
			return err
		}
	}
	if _, err := tx.Exec(`DELETE FROM key_signatures WHERE signer = $1 OR user_id = $1`, userID); err != nil {
		return err
	}
	n, err := tx.Exec(`DELETE FROM cross_signing_keys WHERE user_id = $1`, userID)
	if err != nil || n == 0 {
		return err
	}
	return noteNews(tx, userID, "")
}

// Run does what goes on in the background until ctx ends: it tells other servers of changed devices, and bounds the inboxes
// of devices that never look into them and what waits for servers that never take it.
func (a *API) Run(ctx context.Context) {
	var group sync.WaitGroup
	group.Go(func() { a.boundInboxes(ctx) })
	group.Go(func() { a.boundBacklogs(ctx) })
	a.follow(ctx)
	group.Wait()
}

// nowMS is the time in milliseconds.
func (a *API) nowMS() int64 { return a.now().UnixMilli() }

// serverOf returns the server name in a user id; ok is false for what is no user id.
func serverOf(userID string) (server string, ok bool) {
	if len(userID) > 255 || !strings.HasPrefix(userID, "@") {
		return "", false
	}
	_, server, ok = strings.Cut(userID, ":")
	return server, ok && server != ""
}

// isLocal tells whether a user id is of this server.
func (a *API) isLocal(userID string) bool {
	server, ok := serverOf(userID)
	return ok && server == a.rooms.Name()
}
