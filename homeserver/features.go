package homeserver

import (
	"context"
	"fmt"
	"net/http"
	"sync"

	"github.com/myelin-im/myelin/accounts"
	"github.com/myelin-im/myelin/appservice"
	"github.com/myelin-im/myelin/clientapi"
	"github.com/myelin-im/myelin/delayed"
	"github.com/myelin-im/myelin/directory"
	"github.com/myelin-im/myelin/e2ee"
	"github.com/myelin-im/myelin/ephemeral"
	"github.com/myelin-im/myelin/federation"
	"github.com/myelin-im/myelin/federation/inbox"
	"github.com/myelin-im/myelin/federation/keys"
	"github.com/myelin-im/myelin/federation/queue"
	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/mediaapi"
	"github.com/myelin-im/myelin/notices"
	"github.com/myelin-im/myelin/push"
	"github.com/myelin-im/myelin/push/gateway"
	"github.com/myelin-im/myelin/push/notifications"
	"github.com/myelin-im/myelin/push/pushers"
	"github.com/myelin-im/myelin/push/threads"
	"github.com/myelin-im/myelin/push/unread"
	"github.com/myelin-im/myelin/reports"
	"github.com/myelin-im/myelin/retention"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/search"
	"github.com/myelin-im/myelin/storage"
	"github.com/myelin-im/myelin/syncapi"
)

// schemas are the tables of all features, those of lower floors first.
var schemas = []storage.Schema{roomserver.Schema, accounts.Schema, e2ee.Schema, ephemeral.Schema, push.Schema, threads.Schema, pushers.Schema, directory.Schema, notices.Schema, reports.Schema, keys.Schema, queue.Schema, inbox.Schema, syncapi.Schema, search.Schema, delayed.Schema, mediaapi.Schema}

// features are the parts of the server that know Matrix. The zero value can tell its endpoints, but not serve them.
type features struct {
	db        *storage.DB
	rooms     *roomserver.Server
	accounts  *accounts.API
	ephemeral *ephemeral.API
	e2ee      *e2ee.API
	push      *push.API
	unread    *unread.Counts
	pushers   *pushers.API
	gateway   *gateway.Gateway
	client    *clientapi.API
	sync      *syncapi.API
	directory *directory.API
	notices   *notices.API
	services  *appservice.API
	notified  *notifications.API
	reports   *reports.API
	search    *search.API
	retention *retention.Cleaner

	media      *mediaapi.API
	federation *federation.API
	delayed    *delayed.API
	threads    *threads.API
}

// mayInvite is what federation asks before a local user is invited by somebody elsewhere.
func (f *features) mayInvite(ctx context.Context, user, sender string) error {
	var exists bool
	var permission accounts.InvitePermission
	err := f.db.Read(ctx, func(tx *storage.Tx) (err error) {
		if exists, err = accounts.Exists(tx, user); err == nil && exists {
			permission, err = accounts.InvitePermissionOf(tx, user)
		}
		return err
	})
	switch {
	case err != nil:
		return fmt.Errorf("permission to invite %s: %w", user, err)
	case !exists:
		return mxerr.NotFound("There is no such user here")
	case permission.Of(sender) == accounts.InviteBlocked:
		return mxerr.New(http.StatusForbidden, "M_INVITE_BLOCKED", user+" does not accept invites")
	}
	return nil
}

// scheduleByQuery is what clientapi asks of delayed events, which are put together after it.
func (f *features) scheduleByQuery(ctx context.Context, by *httpapi.Caller, roomID string, d roomserver.Draft, delayMS int64) (string, error) {
	return f.delayed.ScheduleByQuery(ctx, by, roomID, d, delayMS)
}

// attachMedia is what clientapi asks of media, which is put together after it.
func (f *features) attachMedia(ctx context.Context, userID string, uris []string) (func(u *storage.Unit, eventID string), error) {
	return f.media.Attach(ctx, userID, uris)
}

// endpoints is everything that the features serve.
func (f *features) endpoints() []httpapi.Endpoint {
	var all []httpapi.Endpoint
	for _, some := range [][]httpapi.Endpoint{
		f.accounts.Endpoints(), f.ephemeral.Endpoints(), f.e2ee.Endpoints(), f.push.Endpoints(), f.pushers.Endpoints(), f.gateway.Endpoints(), f.client.Endpoints(), f.sync.Endpoints(),
		f.directory.Endpoints(), f.notices.Endpoints(), f.services.Endpoints(), f.notified.Endpoints(), f.reports.Endpoints(), f.search.Endpoints(), f.media.Endpoints(), f.federation.Endpoints(), f.delayed.Endpoints(), f.threads.Endpoints(), f.retention.Endpoints(),
	} {
		all = append(all, some...)
	}
	return all
}

// authenticate finds the caller of a request.
func (f *features) authenticate(ctx context.Context, token string, r *http.Request) (*httpapi.Caller, error) {
	return f.accounts.Authenticate(ctx, token, r)
}

// authenticateServer finds the server that signed a request.
func (f *features) authenticateServer(ctx context.Context, r *http.Request, body []byte) (*httpapi.Caller, error) {
	return f.federation.Authenticate(ctx, r, body)
}

// start lets the features do what they do in the background until ctx ends; then the channel is closed.
func (f *features) start(ctx context.Context) (ended <-chan struct{}) {
	var group sync.WaitGroup
	group.Go(func() { f.accounts.Run(ctx) })
	group.Go(func() { f.ephemeral.Run(ctx) })
	group.Go(func() { f.e2ee.Run(ctx) })
	group.Go(func() { f.unread.Run(ctx) })
	group.Go(func() { f.pushers.Run(ctx) })
	group.Go(func() { f.client.Run(ctx) })
	group.Go(func() { f.rooms.Run(ctx) })
	group.Go(func() { f.search.Run(ctx) })
	group.Go(func() { f.media.Run(ctx) })
	group.Go(func() { f.retention.Run(ctx) })
	group.Go(func() { f.federation.Run(ctx) })
	group.Go(func() { f.delayed.Run(ctx) })
	done := make(chan struct{})
	go func() {
		group.Wait()
		close(done)
	}()
	return done
}

// release answers requests that wait for something to happen.
func (f *features) release() { f.sync.Release() }
