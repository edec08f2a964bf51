package federation

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/sirupsen/logrus"

	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/roomserver/pdu"
)

// receive judges events that a server sent to one room, in order; their signatures are good. What is wrong with one of
// them is no error and harms no other.
func (a *API) receive(ctx context.Context, log *logrus.Entry, origin, roomID string, list []*pdu.Event) error {
	if len(list) == 0 {
		return ctx.Err()
	}
	room, err := a.rooms.Room(ctx, roomID)
	if errors.Is(err, roomserver.ErrUnknownRoom) || err == nil && !room.Resident() {
		a.rescinded(ctx, log, list)
		return nil
	}
	if err != nil {
		return err
	}
	in := make([]roomserver.Incoming, 0, len(list))
	for _, p := range parentsFirst(list) {
		in = append(in, roomserver.Incoming{Event: p})
	}
	if err := a.recommended(ctx, room, in); err != nil {
		return err
	}
	got, err := a.rooms.Take(ctx, roomID, in)
	if err != nil {
		return err
	}
	lost := 0
	for i := range got {
		if got[i].Err != nil {
			if got[i], err = a.again(ctx, origin, room, in[i], lost < maxLost); err != nil {
				return err
			}
			if got[i].Err != nil {
				lost++
			}
		}
		note(log, in[i].Event, got[i])
	}
	return a.rooms.Tidy(ctx, roomID)
}

// maxLost is after how many events of one transaction and room that came to nothing, although their server was asked for
// what they refer to, it is not asked any more: it has nothing, or means to keep us busy.
const maxLost = 5

// again tries an event again that could not be judged, with what its server tells if it is to be asked.
func (a *API) again(ctx context.Context, origin string, room *roomserver.Room, in roomserver.Incoming, ask bool) (roomserver.Received, error) {
	if ask {
		return a.complete(ctx, origin, room, in)
	}
	got, _, err := a.retake(ctx, room, in)
	return got, err
}

// note logs what an operator may want to know of the fate of an event.
func note(log *logrus.Entry, p *pdu.Event, got roomserver.Received) {
	log = log.WithField("event_id", p.ID)
	switch {
	case got.Err != nil:
		log.WithError(got.Err).Info("an event could not be judged; it is tried again when it comes again")
	case got.Outcome == roomserver.Rejected:
		log.WithError(got.Reason).Info("rejected an event")
	case got.Outcome == roomserver.SoftFailed:
		log.WithError(got.Reason).Info("soft-failed an event")
	}
}

// signed drops the events whose signatures are not in order.
func (a *API) signed(ctx context.Context, log *logrus.Entry, list []*pdu.Event) []*pdu.Event {
	good := make([]*pdu.Event, 0, len(list))
	for i, err := range a.keys.VerifyEvents(ctx, list) {
		if err == nil {
			good = append(good, list[i])
		} else if ctx.Err() == nil {
			log.WithError(err).WithField("event_id", list[i].ID).Info("dropped an event without the signatures that it needs")
		}
	}
	return good
}

// parentsFirst sorts events so that parents come before their children and nothing else changes its order.
func parentsFirst(list []*pdu.Event) []*pdu.Event {
	byID := make(map[string]*pdu.Event, len(list))
	for _, p := range list {
		byID[p.ID] = p
	}
	out := make([]*pdu.Event, 0, len(list))
	done := make(map[string]bool, len(list))
	var visit func(p *pdu.Event)
	visit = func(p *pdu.Event) {
		if done[p.ID] {
			return // or a loop, which no hash allows
		}
		done[p.ID] = true
		for _, id := range p.PrevEventIDs() {
			if parent := byID[id]; parent != nil {
				visit(parent)
			}
		}
		out = append(out, p)
	}
	for _, p := range list {
		visit(p)
	}
	return out
}

// rescinded takes events of a room that this server is not in: the ends of invites and knocks.
func (a *API) rescinded(ctx context.Context, log *logrus.Entry, list []*pdu.Event) {
	for _, p := range list {
		if p.Type != "m.room.member" || !p.IsState() || !a.rooms.IsLocal(*p.StateKey) {
			continue
		}
		if err := a.rooms.RescindOutside(ctx, *p.StateKey, p); err != nil && ctx.Err() == nil {
			log.WithError(err).WithField("event_id", p.ID).Info("an event ends no invite or knock")
		}
	}
}

// complete tries an event again that refers to unknown ones: after what happened meanwhile, then with what its server
// can tell of them.
func (a *API) complete(ctx context.Context, origin string, room *roomserver.Room, in roomserver.Incoming) (roomserver.Received, error) {
	got, missing, err := a.retake(ctx, room, in)
	if err != nil || missing == nil {
		return got, err
	}
	if len(missing.Prev) > 0 {
		if err := a.fillGap(ctx, origin, room, in.Event); err != nil {
			return got, err
		}
		// A server that gives none of the parents of what it sends away, is not asked for the state after them either.
		if got, missing, err = a.retake(ctx, room, in); err != nil || missing == nil || len(missing.Prev) > 0 {
			return got, err
		}
	}
	return a.takeWith(ctx, origin, room, in, missing)
}

// takeWith takes an event with what it lacks: first the states after unknown parents, which mostly hold its auth events
// too, then the auth events.
func (a *API) takeWith(ctx context.Context, origin string, room *roomserver.Room, in roomserver.Incoming, missing *roomserver.MissingError) (got roomserver.Received, err error) {
	got.Err = missing
	if len(missing.Prev) > 0 {
		if in.Before, err = a.fetchStatesOf(ctx, origin, room, missing.Prev); err != nil {
			got.Err = fmt.Errorf("state before %s: %w", in.Event.ID, err)
			return got, ctx.Err()
		}
		if got, missing, err = a.retake(ctx, room, in); err != nil || missing == nil {
			return got, err
		}
	}
	if in.Before == nil {
		in.Before = &roomserver.Given{}
	}
	in.Before.Events = append(in.Before.Events, a.fetchAuth(ctx, origin, room, in.Event, missing.Auth)...)
	got, _, err = a.retake(ctx, room, in)
	return got, err
}

// retake is roomserver.Take for one event; missing is not nil where it could not be judged.
func (a *API) retake(ctx context.Context, room *roomserver.Room, in roomserver.Incoming) (got roomserver.Received, missing *roomserver.MissingError, err error) {
	all, err := a.rooms.Take(ctx, room.ID, []roomserver.Incoming{in})
	if err != nil {
		return got, nil, err
	}
	errors.As(all[0].Err, &missing)
	return all[0], missing, nil
}

// fillGap asks for the events between those that this server has and a new one, and takes them in.
func (a *API) fillGap(ctx context.Context, origin string, room *roomserver.Room, p *pdu.Event) error {
	found, err := a.fetchMissing(ctx, origin, room, p)
	if err != nil {
		a.log.WithError(err).WithField("origin", origin).Debug("missing events could not be had")
		return ctx.Err()
	}
	found = slices.DeleteFunc(found, func(m *pdu.Event) bool { return m.ID == p.ID })
	return a.takeFilled(ctx, origin, room, parentsFirst(found))
}

// takeFilled takes in events that were missing, all at once: they may belong before others that are here already.
func (a *API) takeFilled(ctx context.Context, origin string, room *roomserver.Room, found []*pdu.Event) error {
	unknown := make([]*pdu.Event, 0, len(found))
	for _, p := range found {
		without, err := a.stateless(ctx, room, []string{p.ID}, nil)
		if err != nil {
			return err
		}
		if len(without) > 0 {
			unknown = append(unknown, p)
		}
	}
	in, err := a.withStates(ctx, origin, room, unknown)
	if err != nil || len(in) == 0 {
		return err
	}
	if err := a.recommended(ctx, room, in); err != nil {
		return err
	}
	got, err := a.rooms.Take(ctx, room.ID, in)
	if err != nil {
		return err
	}
	for i := range got {
		note(a.log.WithField("room_id", room.ID), in[i].Event, got[i])
	}
	return nil
}

// extremityIDs are the ids of the room's forward extremities, a bounded number.
func extremityIDs(room *roomserver.Room) []string {
	list := room.Head().Extremities
	ids := make([]string, 0, len(list))
	for _, e := range slices.Backward(list) {
		if len(ids) == maxGiven {
			break
		}
		ids = append(ids, e.ID)
	}
	return ids
}
