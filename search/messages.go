package search

import (
	"context"
	"errors"

	"github.com/tidwall/gjson"

	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/search/words"
)

// part is what of an event is searched. The numbers are in the database.
type part int64

const (
	body part = iota + 1
	name
	topic
)

// parts are the keys of a search with what they stand for.
var parts = map[string]part{"content.body": body, "content.name": name, "content.topic": topic}

// term is the term of all entries with the part.
func (p part) term() string {
	switch p {
	case body:
		return "_body"
	case name:
		return "_name"
	}
	return "_topic"
}

// eventType is the type of events that have the part.
func (p part) eventType() string {
	switch p {
	case body:
		return "m.room.message"
	case name:
		return "m.room.name"
	}
	return "m.room.topic"
}

func partOf(e *roomserver.Event) (part, bool) {
	switch {
	case e.Type == "m.room.message" && !e.IsState():
		return body, true
	case e.Is("m.room.name", ""):
		return name, true
	case e.Is("m.room.topic", ""):
		return topic, true
	}
	return 0, false
}

// subBits are the bits of an entry's id below the position: (anchor, -k) comes before (anchor, 0).
const subBits = 20

// entryID is the number of an event in the index. ok is false for an event without a place in history.
func entryID(e *roomserver.Event) (id int64, ok bool) {
	if e.Anchor <= 0 || e.Anchor >= 1<<(63-subBits) || e.Sub > 0 || e.Sub <= -1<<subBits {
		return 0, false
	}
	return e.Anchor<<subBits + e.Sub, true
}

// anchorOf undoes entryID as far as the position goes.
func anchorOf(id int64) int64 { return (id + 1<<subBits - 1) >> subBits }

// eventPage is how many events of a room are looked at together.
const eventPage = 64

// visitEvents brings what arrived in a room after from into the index. What was never visited comes with its history.
func (x *index) visitEvents(ctx context.Context, b *batch, room *roomserver.Room, from, upTo int64) error {
	next := roomserver.AfterPosition(from)
	for {
		var events []*roomserver.Event
		var err error
		if from == 0 {
			events, err = x.rooms.HistoryAfter(ctx, room, next, upTo, eventPage)
		} else {
			events, err = x.rooms.Arrived(ctx, room, next.Anchor-1, upTo, eventPage)
		}
		if err != nil || len(events) == 0 {
			return err
		}
		if err := x.put(ctx, b, room, events); err != nil || len(events) < eventPage {
			return err
		}
		last := events[len(events)-1]
		if next = last.After(); from > 0 {
			next = roomserver.AfterPosition(last.Anchor)
		}
		if last.Sub == 0 {
			b.reached(room.NID, last.Anchor)
		}
	}
}

// put brings into the index what events have changed.
func (x *index) put(ctx context.Context, b *batch, room *roomserver.Room, events []*roomserver.Event) error {
	var changed []*roomserver.Event
	known := map[int64]bool{}
	for _, e := range events {
		c, err := x.concerned(ctx, room, e)
		if err != nil {
			return err
		}
		if c == nil {
			continue
		}
		if _, seen := known[c.NID]; !seen {
			known[c.NID] = b.doubt || c != e
			changed = append(changed, c)
		}
	}
	edits, err := x.edits(ctx, room, changed)
	if err != nil {
		return err
	}
	for _, e := range changed {
		id, ok := entryID(e)
		if !ok {
			continue
		}
		p, _ := partOf(e)
		n := &entry{id: id, room: room.NID, event: e.NID, part: p, sender: e.Sender, before: int64(e.StateBefore), known: known[e.NID]}
		if !e.Redacted {
			n.words = words.Append(nil, textOf(e, p, edits[e.NID]))
		}
		if err := b.add(ctx, n); err != nil {
			return err
		}
	}
	return nil
}

// concerned returns the event whose words change with an event, or nil: what it edits or redacts, else itself.
func (x *index) concerned(ctx context.Context, room *roomserver.Room, e *roomserver.Event) (*roomserver.Event, error) {
	if e.Type == "m.room.redaction" {
		target, err := x.rooms.RedactionTarget(ctx, room, e)
		if err != nil || target == nil {
			return nil, err
		}
		e = target
	}
	if _, ok := partOf(e); !ok {
		return nil, nil
	}
	r := e.Relation()
	if r.Type != "m.replace" || e.IsState() {
		return e, nil
	}
	original, err := x.rooms.Event(ctx, room, r.EventID)
	if errors.Is(err, roomserver.ErrUnknownEvent) {
		return nil, nil // when it comes, its edit is known
	}
	if err != nil {
		return nil, err
	}
	if p, ok := partOf(original); !ok || p != body || original.Relation().Type == "m.replace" {
		return nil, nil
	}
	return original, nil
}

// edits returns the latest valid edits of those messages that have any, by the number of the message.
//
// Spec: client-server API v1.19, "Validity of replacement events".
func (x *index) edits(ctx context.Context, room *roomserver.Room, events []*roomserver.Event) (map[int64]*roomserver.Event, error) {
	children, err := x.rooms.Children(ctx, room, events)
	if err != nil {
		return nil, err
	}
	var parents, nids []int64
	for i, list := range children {
		e := events[i]
		if e.Redacted || e.IsState() {
			continue
		}
		var edit *roomserver.Child
		for j := range list.List {
			c := &list.List[j]
			if c.Kind == roomserver.Replacement && c.Sender == e.Sender && c.Type == e.Type &&
				(edit == nil || c.OriginServerTS > edit.OriginServerTS || c.OriginServerTS == edit.OriginServerTS && c.ID > edit.ID) {
				edit = c
			}
		}
		if edit != nil {
			parents, nids = append(parents, e.NID), append(nids, edit.NID)
		}
	}
	found, err := x.rooms.EventsByNID(ctx, room, nids)
	if err != nil {
		return nil, err
	}
	edits := make(map[int64]*roomserver.Event, len(found))
	for i, e := range found {
		edits[parents[i]] = e
	}
	return edits, nil
}

// textOf returns what is searched of an event, edit being its latest edit or nil.
func textOf(e *roomserver.Event, p part, edit *roomserver.Event) string {
	content := gjson.ParseBytes(e.Content())
	if edit != nil {
		content = gjson.ParseBytes(edit.ContentField("m.new_content"))
	}
	switch p {
	case body:
		return textMember(content, "body")
	case name:
		return textMember(content, "name")
	}
	text := textMember(content, "topic")
	plain := ""
	for _, form := range gjson.GetBytes(e.ContentField("m.topic"), "m\\.text").Array() {
		if kind := form.Get("mimetype"); !kind.Exists() || kind.Str == "text/plain" {
			plain = textMember(form, "body")
			break
		}
	}
	if plain == "" || plain == text {
		return text
	}
	return text + "\n" + plain
}

func textMember(content gjson.Result, key string) string {
	if v := content.Get(key); v.Type == gjson.String {
		return v.Str
	}
	return ""
}
