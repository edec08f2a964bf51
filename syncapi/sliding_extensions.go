package syncapi

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/myelin-im/myelin/accounts"
	"github.com/myelin-im/myelin/ephemeral"
	"github.com/myelin-im/myelin/internal/canonicaljson"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/storage"
)

// covers tells whether the extension is about a room that rules match.
func (x *roomExtension) covers(c *slidingRoom) bool {
	if c.config == nil {
		return false
	}
	if x.Lists == nil && len(c.lists) > 0 || x.Rooms == nil && c.subscribed {
		return true
	}
	if x.Lists != nil && slices.ContainsFunc(*x.Lists, func(name string) bool { return name == "*" && len(c.lists) > 0 || slices.Contains(c.lists, name) }) {
		return true
	}
	return x.Rooms != nil && c.subscribed && slices.ContainsFunc(*x.Rooms, func(id string) bool { return id == "*" || id == c.id })
}

// extensions adds what the extensions tell, and tells whether any of it must not wait.
func (l *slidingLook) extensions(ctx context.Context) (told bool, err error) {
	x := &l.req.extensions
	if x.ToDevice.Enabled {
		if told, err = l.toDevice(ctx, &x.ToDevice); err != nil {
			return false, err
		}
	}
	if x.E2EE.Enabled {
		news, err := l.encryption(ctx)
		if err != nil {
			return false, err
		}
		told = told || news
	}
	for _, add := range []func(context.Context) ([]byte, error){l.accountData, l.receipts, l.typing, l.threadSubscriptions, l.profiles, l.sticky} {
		b, err := add(ctx)
		if err != nil {
			return false, err
		}
		if len(b) > 0 {
			told = true
			if len(l.extensionsOut) > 0 {
				l.extensionsOut = append(l.extensionsOut, ',')
			}
			l.extensionsOut = append(l.extensionsOut, b...)
		}
	}
	return told, nil
}

// extension appends an extension's member.
func (l *slidingLook) extension(name string, value []byte) {
	if len(l.extensionsOut) > 0 {
		l.extensionsOut = append(l.extensionsOut, ',')
	}
	l.extensionsOut = append(canonicaljson.AppendString(l.extensionsOut, name), ':')
	l.extensionsOut = append(l.extensionsOut, value...)
}

// flagRoom sets or clears a flag of what the client knows of a room.
func (l *slidingLook) flagRoom(c *slidingRoom, flag stateFlags, on bool) {
	if !c.known || (c.sent.flags&flag != 0) == on {
		return
	}
	s := c.sent
	s.flags ^= flag
	l.sent(c, s)
}

// flag sets or clears a flag of the connection. Without it those of the rooms mean nothing, and are cleared.
func (l *slidingLook) flag(flag stateFlags, on bool) {
	if (l.change.flags&flag != 0) == on {
		return
	}
	l.change.flags ^= flag
	l.dirty = true
	if on {
		return
	}
	for i := range l.rooms {
		l.flagRoom(&l.rooms[i], flag, false)
	}
}

// accountData is the extension account_data (MSC3959): all of what the client does not know, else what changed.
func (l *slidingLook) accountData(ctx context.Context) ([]byte, error) {
	x := &l.req.extensions.AccountData
	changed := l.initial() || l.api.tracker.userChanged(l.user, l.token.pos)
	if !x.Enabled {
		if changed {
			l.flag(knowsData, false) // what changes now it will not hear of
		}
		return nil, nil
	}
	all := l.change.flags&knowsData == 0
	var news []accounts.Datum
	var err error
	if all || changed {
		if news, err = l.readAccountData(ctx, all); err != nil {
			return nil, err
		}
	}
	l.flag(knowsData, true)
	byRoom := map[string][]accounts.Datum{}
	var global []accounts.Datum
	for _, d := range news {
		if d.Room == "" {
			global = append(global, d)
		} else {
			byRoom[d.Room] = append(byRoom[d.Room], d)
		}
	}
	rooms, err := l.roomAccountData(ctx, x, byRoom, all)
	if err != nil || len(global) == 0 && len(rooms) == 0 {
		return nil, err
	}
	b := []byte(`"account_data":{`)
	if len(global) > 0 {
		b = appendData(append(b, `"global":`...), global)
	}
	if len(rooms) > 0 {
		if len(global) > 0 {
			b = append(b, ',')
		}
		b = append(append(append(b, `"rooms":{`...), rooms...), '}')
	}
	return append(b, '}'), nil
}

// readAccountData reads what changed since the token, or everything.
func (l *slidingLook) readAccountData(ctx context.Context, all bool) (data []accounts.Datum, err error) {
	push := l.api.push
	err = l.api.db.Read(ctx, func(tx *storage.Tx) (err error) {
		rules := all
		if all {
			data, err = accounts.AccountData(tx, l.user)
		} else if data, err = accounts.AccountDataBetween(tx, l.user, l.token.pos, l.upTo); err == nil {
			rules, err = push.RulesChangedBetween(tx, l.user, l.token.pos, l.upTo)
		}
		if err != nil || !rules {
			return err
		}
		content, err := push.AppendAccountData(tx, l.user, l.upTo, nil)
		data = append(data, accounts.Datum{Type: "m.push_rules", Content: content})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("account data of %s: %w", l.user, err)
	}
	return data, nil
}

// roomAccountData appends the account data of rooms; news is everything if all is set.
func (l *slidingLook) roomAccountData(ctx context.Context, x *roomExtension, news map[string][]accounts.Datum, all bool) (b []byte, err error) {
	for i := range l.rooms {
		c := &l.rooms[i]
		if !c.known {
			continue
		}
		data := news[c.id]
		if !x.covers(c) {
			if len(data) > 0 || all {
				l.flagRoom(c, knowsData, false)
			}
			continue
		}
		if c.sent.flags&knowsData == 0 {
			if !all {
				every, err := l.readAccountData(ctx, true)
				if err != nil {
					return nil, err
				}
				clear(news)
				for _, d := range every {
					news[d.Room] = append(news[d.Room], d)
				}
				// From here on news has also what the client knows already; it is sent that again.
				all, data = true, news[c.id]
			}
			l.flagRoom(c, knowsData, true)
		}
		if len(data) == 0 {
			continue
		}
		if len(b) > 0 {
			b = append(b, ',')
		}
		b = appendData(append(canonicaljson.AppendString(b, c.id), ':'), data)
	}
	return b, nil
}

func appendData(b []byte, data []accounts.Datum) []byte {
	b = append(b, '[')
	for i, d := range data {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendDatum(b, d)
	}
	return append(b, ']')
}

// receipts is the extension receipts (MSC3960). Of a room that is new to the client it has the receipts for the events
// of the timeline and the user's own.
func (l *slidingLook) receipts(ctx context.Context) (b []byte, err error) {
	x := &l.req.extensions.Receipts
	if !x.Enabled {
		l.flag(knowsReceipts, false)
		return nil, nil
	}
	l.flag(knowsReceipts, true)
	for i := range l.rooms {
		c := &l.rooms[i]
		if !c.known || c.nid < 0 || c.membership != roomserver.Join {
			continue
		}
		if !x.covers(c) {
			if c.sent.flags&knowsReceipts != 0 && l.api.tracker.roomChanged(c.nid, l.token.pos) {
				l.flagRoom(c, knowsReceipts, false)
			}
			continue
		}
		since := l.token.pos
		if c.sent.flags&knowsReceipts == 0 {
			since = 0
		}
		list, err := l.api.ephemeral.Receipts(ctx, c.nid, l.user, since, l.upTo)
		if err != nil {
			return nil, err
		}
		l.flagRoom(c, knowsReceipts, true)
		if timeline, ok := l.shown[c.nid]; ok {
			list = slices.DeleteFunc(slices.Clone(list), func(r ephemeral.Receipt) bool {
				return r.User != l.user && !slices.ContainsFunc(timeline, func(e *roomserver.Event) bool { return e.ID == r.EventID })
			})
		}
		if len(list) == 0 {
			continue
		}
		if len(b) == 0 {
			b = append(b, `"receipts":{"rooms":{`...)
		} else {
			b = append(b, ',')
		}
		if b, err = appendReceipts(append(canonicaljson.AppendString(b, c.id), ':'), list); err != nil {
			return nil, err
		}
	}
	if len(b) > 0 {
		b = append(b, "}}"...)
	}
	return b, nil
}

// shownReceipt is a receipt in an m.receipt event.
type shownReceipt struct {
	TS     int64  `json:"ts"`
	Thread string `json:"thread_id,omitempty"`
}

// appendReceipts appends receipts as one m.receipt event, as the extension has it. Where somebody has several receipts
// for an event, the one for no thread counts.
func appendReceipts(b []byte, list []ephemeral.Receipt) ([]byte, error) {
	content := map[string]map[string]map[string]shownReceipt{}
	for i := range list {
		r := &list[i]
		kind := "m.read"
		if r.Kind == ephemeral.Private {
			kind = "m.read.private"
		}
		kinds := content[r.EventID]
		if kinds == nil {
			kinds = map[string]map[string]shownReceipt{}
			content[r.EventID] = kinds
		}
		if kinds[kind] == nil {
			kinds[kind] = map[string]shownReceipt{}
		}
		if _, ok := kinds[kind][r.User]; !ok || r.Thread == ephemeral.Unthreaded {
			kinds[kind][r.User] = shownReceipt{r.TS, r.Thread}
		}
	}
	raw, err := json.Marshal(content)
	if err != nil {
		return nil, fmt.Errorf("encode receipts: %w", err)
	}
	return append(append(append(b, `{"type":"m.receipt","content":`...), raw...), '}'), nil
}

// typing is the extension typing (MSC3961). Rooms that the client knows are told of also while no window has them, so
// that nobody seems to type on.
func (l *slidingLook) typing(context.Context) (b []byte, err error) {
	x, e := &l.req.extensions.Typing, l.api.ephemeral
	known, stale := int64(-1), false
	if v := l.token.volatile; !l.initial() && v.Boot == e.Boot() && e.TypingKnown(v.Typing>>1) {
		known = v.Typing >> 1
	} else {
		stale = !l.initial() && v.Typing&1 == 1
	}
	stamp := e.TypingStamp() // before the lists are read: what changes meanwhile is told again
	l.volatile = Volatile{Boot: e.Boot(), Typing: stamp << 1}
	if !x.Enabled {
		l.volatile.Typing |= l.token.volatile.Typing & 1
		return nil, nil
	}
	everywhere := x.Lists == nil && x.Rooms == nil
	for i := range l.rooms {
		c := &l.rooms[i]
		if !c.known || c.nid < 0 || c.membership != roomserver.Join || !everywhere && !x.covers(c) {
			continue
		}
		somebody := e.TypingChanged(c.nid, -1)
		if somebody {
			l.volatile.Typing |= 1
		}
		_, fresh := l.shown[c.nid]
		if !stale && !(fresh && somebody) && (known == stamp || !e.TypingChanged(c.nid, known)) {
			continue
		}
		if len(b) == 0 {
			b = append(b, `"typing":{"rooms":{`...)
		} else {
			b = append(b, ',')
		}
		b = e.AppendTypingEvent(append(canonicaljson.AppendString(b, c.id), ':'), c.nid)
	}
	if len(b) > 0 {
		b = append(b, "}}"...)
	}
	return b, nil
}

// interests are what the request waits for.
func (l *slidingLook) interests() interests {
	what := inLog
	if l.req.extensions.Receipts.Enabled {
		what |= inReceipts
	}
	if l.req.extensions.Typing.Enabled {
		what |= inTyping
	}
	if l.req.extensions.Profiles.Enabled {
		what |= inProfiles
	}
	return what
}

// roomChanged tells whether something in a room may have changed after a position.
func (t *tracker) roomChanged(nid, since int64) bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return since < t.start || t.roomPos[nid] > since
}
