package federation

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/tidwall/gjson"

	"github.com/myelin-im/myelin/federation/client"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/roomserver/pdu"
)

const (
	// policyKeyID is the id of every policy server's key.
	policyKeyID = "ed25519:policy_server"
	// policyTimeout bounds how long a policy server may think about an event.
	policyTimeout = 10 * time.Second
)

// Recommend gets the signature of a room's policy server for an event of a local user, or the error for the user.
//
// spec: server-server-api v1.19 "Asking for a Policy Server signature on an event"
func (a *API) Recommend(ctx context.Context, room *roomserver.Room, p *pdu.Event) (*pdu.Event, error) {
	server, err := a.rooms.PolicyServer(ctx, room)
	if err != nil || server == nil {
		return p, err
	}
	signed, err := a.askPolicy(ctx, server, p)
	var said *client.Error
	if errors.As(err, &said) && said.Code != "" && said.Status >= 400 && said.Status < 500 {
		return nil, mxerr.New(said.Status, said.Code, said.Text).With(err)
	}
	if err != nil {
		return nil, mxerr.New(http.StatusBadGateway, "M_UNKNOWN", "The room's policy server gave no sound answer").With(err)
	}
	return signed, nil
}

// recommended asks the room's policy server, if it has one, about events that come in without its signature. What it does
// not recommend is marked.
func (a *API) recommended(ctx context.Context, room *roomserver.Room, in []roomserver.Incoming) error {
	server, err := a.rooms.PolicyServer(ctx, room)
	if err != nil || server == nil {
		return err
	}
	var group sync.WaitGroup
	slots := make(chan struct{}, fetchParallel)
	for i := range in {
		slots <- struct{}{}
		group.Go(func() {
			defer func() { <-slots }()
			signed, err := a.askPolicy(ctx, server, in[i].Event)
			if err != nil {
				in[i].Spam = fmt.Errorf("the room's policy server does not recommend it: %w", err)
				return
			}
			in[i].Event = signed
		})
	}
	group.Wait()
	return ctx.Err()
}

// askPolicy returns an event with the policy server's signature, which is asked for unless the event has it.
func (a *API) askPolicy(ctx context.Context, server *roomserver.PolicyServer, p *pdu.Event) (*pdu.Event, error) {
	if server.Exempt(p) || p.VerifySignature(server.Name, policyKeyID, server.Key) == nil {
		return p, nil
	}
	if server.Name == a.name {
		return nil, errors.New("this server is no policy server")
	}
	answer, err := a.client.Do(ctx, client.Request{
		Server: server.Name, Method: http.MethodPost, Path: "/_matrix/policy/v1/sign", Body: p.JSON(), Timeout: policyTimeout, MaxBytes: 64 << 10,
	})
	if err != nil {
		return nil, err
	}
	signature := ""
	gjson.ParseBytes(answer).ForEach(func(name, keys gjson.Result) bool {
		if name.Str == server.Name {
			signature = keys.Get(gjson.Escape(policyKeyID)).Str
		}
		return signature == ""
	})
	signed, err := p.AddSignature(server.Name, policyKeyID, signature)
	if err != nil {
		return nil, err
	}
	if err := signed.VerifySignature(server.Name, policyKeyID, server.Key); err != nil {
		return nil, fmt.Errorf("the policy server's signature: %w", err)
	}
	return signed, nil
}
