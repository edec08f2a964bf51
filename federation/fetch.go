package federation

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/tidwall/gjson"

	"github.com/myelin-im/myelin/federation/client"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/roomserver/pdu"
)

const (
	// fetchTimeout bounds one request for what is missing.
	fetchTimeout = 20 * time.Second
	// stateTimeout bounds one for a whole state.
	stateTimeout = 2 * time.Minute
	// fetchSingly is up to how many unknown events of a state are asked for one by one, fetchParallel how many at the
	// same time.
	fetchSingly   = 50
	fetchParallel = 8
	// maxStateEvents bounds the events of one state, or of an auth chain, that another server describes.
	maxStateEvents = 500_000
)

// fetchMissing asks a server for the events before one that it sent.
func (a *API) fetchMissing(ctx context.Context, server string, room *roomserver.Room, p *pdu.Event) ([]*pdu.Event, error) {
	body, err := json.Marshal(map[string]any{
		"limit": maxMissing, "min_depth": 0, "earliest_events": extremityIDs(room), "latest_events": []string{p.ID},
	})
	if err != nil {
		return nil, err
	}
	answer, err := a.client.Do(ctx, client.Request{
		Server: server, Method: http.MethodPost, Path: client.Path(v1+"/get_missing_events/%s", room.ID), Body: body, Timeout: fetchTimeout,
	})
	if err != nil {
		return nil, err
	}
	list := gjson.GetBytes(answer, "events")
	if n := len(list.Array()); n > maxGiven {
		return nil, fmt.Errorf("%w: %d events where %d were asked for", errUnsound, n, maxMissing)
	}
	return a.sound(ctx, room.Version, room.ID, list, nil), nil
}

// fetchAuth asks a server for the unknown auth events of an event and what these need. It returns what it gets.
func (a *API) fetchAuth(ctx context.Context, server string, room *roomserver.Room, p *pdu.Event, missing []string) []*pdu.Event {
	answer, err := a.client.Do(ctx, client.Request{
		Server: server, Method: http.MethodGet, Path: client.Path(v1+"/event_auth/%s/%s", room.ID, p.ID),
		Timeout: fetchTimeout, MaxBytes: maxStateBytes,
	})
	if err == nil {
		return a.sound(ctx, room.Version, room.ID, gjson.GetBytes(answer, "auth_chain"), nil)
	}
	a.log.WithError(err).WithField("origin", server).Debug("an auth chain could not be had")
	return a.fetchEvents(ctx, server, room, missing)
}

// fetchEvents asks a server for events one by one, and returns what it gets.
func (a *API) fetchEvents(ctx context.Context, server string, room *roomserver.Room, ids []string) []*pdu.Event {
	found := make([]*pdu.Event, len(ids))
	var group sync.WaitGroup
	slots := make(chan struct{}, fetchParallel)
	for i, id := range ids {
		slots <- struct{}{}
		group.Go(func() {
			defer func() { <-slots }()
			found[i] = a.fetchEvent(ctx, server, room, id)
		})
	}
	group.Wait()
	return slices.DeleteFunc(found, func(p *pdu.Event) bool { return p == nil })
}

// fetchEvent asks a server for one event; nil if it cannot be had.
func (a *API) fetchEvent(ctx context.Context, server string, room *roomserver.Room, id string) *pdu.Event {
	answer, err := a.client.Do(ctx, client.Request{
		Server: server, Method: http.MethodGet, Path: client.Path(v1+"/event/%s", id), Timeout: fetchTimeout, MaxBytes: 1 << 20,
	})
	if err != nil {
		a.log.WithError(err).WithField("event_id", id).Debug("an event could not be had")
		return nil
	}
	for _, p := range a.sound(ctx, room.Version, room.ID, gjson.GetBytes(answer, "pdus"), nil) {
		if p.ID == id {
			return p
		}
	}
	return nil
}

// fetchStates asks a server for the states after events that this server does not know, and waits for their ids as long as
// patience.
func (a *API) fetchStates(ctx context.Context, server string, room *roomserver.Room, parents []string, patience time.Duration) (*roomserver.Given, error) {
	given := &roomserver.Given{}
	for _, id := range parents {
		state, err := a.fetchStateAfter(ctx, server, room, id, patience, given)
		if err != nil {
			return nil, fmt.Errorf("state after %s from %s: %w", id, server, err)
		}
		given.States = append(given.States, state)
	}
	return given, nil
}

// maxOthers is how many other servers of a room are asked for a state that the sender of an event does not know: it may
// have come into the room later than the event's ancestors.
const maxOthers = 2

// fetchStatesOf is fetchStates for the parents of an event of a server: if it does not know, others are asked.
func (a *API) fetchStatesOf(ctx context.Context, origin string, room *roomserver.Room, parents []string) (*roomserver.Given, error) {
	given, err := a.fetchStates(ctx, origin, room, parents, fetchTimeout)
	asked := 0
	for _, server := range room.Servers() {
		if err == nil || ctx.Err() != nil || asked == maxOthers {
			break
		}
		if server == origin || server == a.name {
			continue
		}
		asked++
		if other, otherErr := a.fetchStates(ctx, server, room, parents, fetchTimeout); otherErr == nil {
			given, err = other, nil
		}
	}
	return given, err
}

// fetchStateAfter returns the ids of the state after an event, and adds to given what is not known of it.
func (a *API) fetchStateAfter(ctx context.Context, server string, room *roomserver.Room, id string, patience time.Duration, given *roomserver.Given) ([]string, error) {
	query := "?" + url.Values{"event_id": {id}}.Encode()
	answer, err := a.client.Do(ctx, client.Request{
		Server: server, Method: http.MethodGet, Path: client.Path(v1+"/state_ids/%s", room.ID) + query, Timeout: patience, MaxBytes: maxStateBytes,
	})
	if err != nil {
		return nil, err
	}
	state, auth := ids(gjson.GetBytes(answer, "pdu_ids")), ids(gjson.GetBytes(answer, "auth_chain_ids"))
	if len(state)+len(auth) > maxStateEvents {
		return nil, fmt.Errorf("%w: a state of %d events", errUnsound, len(state)+len(auth))
	}
	create, err := a.rooms.StateEvent(ctx, room, room.Head().State, "m.room.create", "")
	if err != nil {
		return nil, err
	}
	if create == nil || !slices.Contains(state, create.ID) {
		return nil, fmt.Errorf("%w: the state lacks the room's m.room.create", errUnsound)
	}
	unknown, err := a.rooms.Unknown(ctx, room, slices.Concat(state, auth, []string{id}))
	if err != nil {
		return nil, err
	}
	var fetched []*pdu.Event
	if len(unknown) > fetchSingly {
		if fetched, err = a.fetchWholeState(ctx, server, room, query); err != nil {
			return nil, err
		}
		have := make(map[string]bool, len(fetched))
		for _, p := range fetched {
			have[p.ID] = true
		}
		unknown = slices.DeleteFunc(unknown, func(u string) bool { return have[u] })
		unknown = unknown[:min(len(unknown), fetchSingly)]
	}
	fetched = append(fetched, a.fetchEvents(ctx, server, room, unknown)...)
	given.Events = append(given.Events, fetched...)
	if changes, err := a.changesState(ctx, room, id, fetched); err != nil || !changes {
		return state, err
	}
	return append(state, id), nil
}

// changesState tells whether the state after an event has the event itself. It is one of those fetched just now, unless it was
// known before.
func (a *API) changesState(ctx context.Context, room *roomserver.Room, id string, fetched []*pdu.Event) (bool, error) {
	if i := slices.IndexFunc(fetched, func(p *pdu.Event) bool { return p.ID == id }); i >= 0 {
		return fetched[i].IsState(), nil
	}
	e, err := a.rooms.Event(ctx, room, id)
	if errors.Is(err, roomserver.ErrUnknownEvent) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return e.IsState() && !e.Rejected(), nil
}

// fetchWholeState asks for a state with all its events.
func (a *API) fetchWholeState(ctx context.Context, server string, room *roomserver.Room, query string) ([]*pdu.Event, error) {
	answer, err := a.client.Do(ctx, client.Request{
		Server: server, Method: http.MethodGet, Path: client.Path(v1+"/state/%s", room.ID) + query, Timeout: stateTimeout, MaxBytes: maxStateBytes,
	})
	if err != nil {
		return nil, err
	}
	list := a.sound(ctx, room.Version, room.ID, gjson.GetBytes(answer, "pdus"), nil)
	return append(list, a.sound(ctx, room.Version, room.ID, gjson.GetBytes(answer, "auth_chain"), list)...), nil
}

// ids reads an array of event ids; what is none is left out.
func ids(list gjson.Result) (out []string) {
	list.ForEach(func(_, id gjson.Result) bool {
		if id.Type == gjson.String && len(id.Str) <= pdu.MaxFieldSize {
			out = append(out, id.Str)
		}
		return true
	})
	return out
}

// errNobody says that no server had what was asked for.
var errNobody = errors.New("no server of the room has it")
