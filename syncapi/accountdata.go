package syncapi

import (
	"context"
	"fmt"

	"github.com/myelin-im/myelin/accounts"
	"github.com/myelin-im/myelin/internal/canonicaljson"
	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/storage"
	"github.com/myelin-im/myelin/syncapi/filter"
)

// noFilter lets everything pass.
var noFilter = func() *filter.Filter {
	f, err := filter.Parse([]byte("{}"))
	if err != nil {
		panic("syncapi: the empty filter does not parse: " + err.Error())
	}
	return f
}()

// filter finds the filter of a request: JSON, or the id of one that was stored.
func (a *API) filter(ctx context.Context, by *httpapi.Caller, f string) (*filter.Filter, error) {
	if f == "" {
		return noFilter, nil
	}
	if f[0] == '{' {
		return a.inlineFilter(f)
	}
	key := by.UserID + " " + f
	if known, ok := a.filters.Get(key); ok {
		return known, nil
	}
	var raw []byte
	err := a.db.Read(ctx, func(tx *storage.Tx) (err error) {
		raw, err = accounts.Filter(tx, by.UserID, f)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read filter: %w", err)
	}
	if raw == nil {
		return nil, mxerr.InvalidParam("There is no filter with that id")
	}
	parsed, err := filter.Parse(raw)
	if err == nil {
		a.filters.Put(key, parsed, 1) // the id is a hash of the text, so it never means another one
	}
	return parsed, err
}

// maxSharedFilter is up to which length, in bytes, filters that come with each request are remembered.
const maxSharedFilter = 1 << 10

// inlineFilter is a filter that a request brings with it. All devices of one client mostly bring the same, of which many
// may wait at the same time: they share it.
func (a *API) inlineFilter(text string) (*filter.Filter, error) {
	if known, ok := a.filters.Get(text); ok { // no user ID begins like JSON
		return known, nil
	}
	parsed, err := filter.Parse([]byte(text))
	if err == nil && len(text) <= maxSharedFilter {
		a.filters.Put(text, parsed, 1)
	}
	return parsed, err
}

// accountData reads what changed in the user's account data and appends what belongs to no room.
func (l *look) accountData(ctx context.Context, out []byte) ([]byte, error) {
	l.data = nil
	if !l.initial() && !l.api.tracker.userChanged(l.user, l.since.Pos) {
		return out, nil
	}
	var data []accounts.Datum
	err := l.api.db.Read(ctx, func(tx *storage.Tx) (err error) {
		if l.initial() {
			data, err = accounts.AccountData(tx, l.user)
		} else {
			data, err = accounts.AccountDataBetween(tx, l.user, l.since.Pos, l.upTo)
		}
		if err == nil {
			data, err = l.pushRules(tx, data)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("account data of %s: %w", l.user, err)
	}
	begun := false
	for _, d := range data {
		if d.Room != "" {
			if l.data == nil {
				l.data = map[string][]accounts.Datum{}
			}
			l.data[d.Room] = append(l.data[d.Room], d)
			continue
		}
		if !l.filter.AccountData.Match(d.Type, l.user) {
			continue
		}
		if !begun {
			out = append(out, `,"account_data":{"events":[`...)
		} else {
			out = append(out, ',')
		}
		begun = true
		out = appendDatum(out, d)
	}
	if begun {
		out = append(out, "]}"...)
	}
	return out, nil
}

// pushRules appends the account data that the user's push rules are, if they changed.
func (l *look) pushRules(tx *storage.Tx, data []accounts.Datum) ([]accounts.Datum, error) {
	if !l.initial() {
		changed, err := l.api.push.RulesChangedBetween(tx, l.user, l.since.Pos, l.upTo)
		if err != nil || !changed {
			return data, err
		}
	}
	content, err := l.api.push.AppendAccountData(tx, l.user, l.upTo, nil)
	if err != nil {
		return nil, err
	}
	return append(data, accounts.Datum{Type: "m.push_rules", Content: content}), nil
}

func appendDatum(b []byte, d accounts.Datum) []byte {
	b = append(b, `{"content":`...)
	if d.Content == nil {
		b = append(b, "{}"...)
	} else {
		b = append(b, d.Content...)
	}
	return append(canonicaljson.AppendString(append(b, `,"type":`...), d.Type), '}')
}

// roomData appends the room's account data that changed, or all of it where the client does not know the room.
func (p *roomPart) roomData(ctx context.Context, b []byte) ([]byte, error) {
	l := p.look
	data := l.data[p.room.ID]
	if p.fresh && !l.initial() {
		var all []accounts.Datum
		err := l.api.db.Read(ctx, func(tx *storage.Tx) (err error) {
			all, err = accounts.AccountData(tx, l.user)
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("account data of %s: %w", l.user, err)
		}
		data = nil
		for _, d := range all {
			if d.Room == p.room.ID {
				data = append(data, d)
			}
		}
	}
	f := &l.filter.Room.AccountData
	begun := p.fresh // a room that the client does not know comes with all of it, and be it nothing
	if begun {
		b = append(b, `,"account_data":{"events":[`...)
	}
	first := true
	for _, d := range data {
		if !f.Allows(p.room.ID) || !f.EventFilter.Match(d.Type, l.user) {
			continue
		}
		switch {
		case !begun:
			b = append(b, `,"account_data":{"events":[`...)
		case !first:
			b = append(b, ',')
		}
		begun, first = true, false
		b = appendDatum(b, d)
	}
	if begun {
		b = append(b, "]}"...)
	}
	return b, nil
}

// ignored returns the users whom the user ignores (client-server API v1.19, "Ignoring users").
func (l *look) ignored(ctx context.Context) (map[string]bool, error) {
	return l.api.ignoredUsers(ctx, l.user)
}

// ignoredUsers returns whom a user ignores, not to be changed.
func (a *API) ignoredUsers(ctx context.Context, user string) (map[string]bool, error) {
	return a.unread.Ignored(ctx, user)
}
