package relations

import (
	"context"
	"strconv"

	"github.com/myelin-im/myelin/internal/canonicaljson"
	"github.com/myelin-im/myelin/roomserver"
)

// View is what one user sees of a room. It is for one request.
type View struct {
	Rooms *roomserver.Server
	Room  *roomserver.Room
	// User is who looks, Viewer decides what the user may see.
	User   string
	Viewer *roomserver.Viewer
	// Ignored returns whom the user ignores. It is asked only if anything relates to an event.
	Ignored func(context.Context) (map[string]bool, error)
	// UpTo, if positive, is the log position beyond which nothing counts, because the user hears of it later.
	UpTo int64
}

// maxReferences bounds how many references to one event are listed: the newest.
const maxReferences = 1000

// Summary is what relates to one event.
type Summary struct {
	// Edit is the number of the latest valid replacement, 0 if there is none.
	Edit int64
	// References are the ids of the events that refer to it, oldest first.
	References []string
	// Replies is how many replies the thread that starts at the event has, Latest the newest of them and
	// LatestAt its place; 0 without a thread.
	Replies  int
	Latest   int64
	LatestAt roomserver.HistoryToken
	// Participated tells that the user sent the event or a reply.
	Participated bool
}

func (s *Summary) empty() bool { return s.Edit == 0 && s.Latest == 0 && len(s.References) == 0 }

// Summaries sums up what relates to each of these events, in the same order.
func (v *View) Summaries(ctx context.Context, parents []*roomserver.Event) ([]Summary, error) {
	children, err := v.Rooms.Children(ctx, v.Room, parents)
	if err != nil {
		return nil, err
	}
	out := make([]Summary, len(parents))
	var ignored map[string]bool
	asked := false
	for i, list := range children {
		if len(list.List) == 0 {
			continue
		}
		if !asked {
			if ignored, err = v.Ignored(ctx); err != nil {
				return nil, err
			}
			asked = true
		}
		if out[i], err = v.sum(ctx, parents[i], list, ignored); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// sum walks the children of one event, newest first.
func (v *View) sum(ctx context.Context, parent *roomserver.Event, children roomserver.Children, ignored map[string]bool) (s Summary, err error) {
	relType := parent.Relation().Type
	var edit *roomserver.Child
	for i := len(children.List) - 1; i >= 0; i-- {
		c := &children.List[i]
		if v.UpTo > 0 && c.Sub == 0 && c.Anchor > v.UpTo || c.Sender != v.User && ignored[c.Sender] || !counts(c, parent, relType, edit) {
			continue
		}
		ok, err := v.Viewer.SeesChild(ctx, c)
		if err != nil {
			return s, err
		}
		if !ok {
			continue
		}
		switch c.Kind {
		case roomserver.Replacement:
			edit = c
			s.Edit = c.NID
		case roomserver.ThreadReply:
			if s.Replies++; s.Latest == 0 {
				s.Latest, s.LatestAt = c.NID, c.Token()
			}
			s.Participated = s.Participated || c.Sender == v.User
		case roomserver.Reference:
			if len(s.References) < maxReferences {
				s.References = append(s.References, c.ID)
			}
		}
	}
	for i, j := 0, len(s.References)-1; i < j; i, j = i+1, j-1 {
		s.References[i], s.References[j] = s.References[j], s.References[i]
	}
	if s.Replies > 0 {
		s.Replies += children.OlderReplies
		s.Participated = s.Participated || parent.Sender == v.User
	}
	return s, nil
}

// counts tells whether a child is a valid one of its kind. edit is the latest replacement so far.
func counts(c *roomserver.Child, parent *roomserver.Event, relType string, edit *roomserver.Child) bool {
	switch c.Kind {
	case roomserver.Replacement:
		if parent.Redacted || parent.IsState() || relType == "m.replace" || c.Sender != parent.Sender || c.Type != parent.Type {
			return false
		}
		return edit == nil || c.OriginServerTS > edit.OriginServerTS || c.OriginServerTS == edit.OriginServerTS && c.ID > edit.ID
	case roomserver.ThreadReply:
		return relType == ""
	}
	return true
}

// Bundle makes a reader of events show what relates to these: it sets r.Relations, if anything does. State events get
// nothing, as the specification has it.
func (v *View) Bundle(ctx context.Context, r *roomserver.Reader, lists ...[]*roomserver.Event) error {
	b := bundler{View: v, reader: *r}
	b.reader.Relations = nil
	var parents []*roomserver.Event
	for _, list := range lists {
		for _, e := range list {
			if !e.IsState() {
				parents = append(parents, e)
			}
		}
	}
	bundles, err := b.bundle(ctx, parents, true)
	if err != nil {
		return err
	}
	if len(bundles) > 0 {
		r.Relations = func(e *roomserver.Event) []byte { return bundles[e.NID] }
	}
	return nil
}

// bundler renders summaries for one reader.
type bundler struct {
	*View
	reader roomserver.Reader
}

// bundle returns the m.relations members of those events that have any, by number. The latest event of a thread gets
// its own, but there the nesting ends, as it cannot be the root of another.
func (b *bundler) bundle(ctx context.Context, parents []*roomserver.Event, threads bool) (map[int64][]byte, error) {
	sums, err := b.Summaries(ctx, parents)
	if err != nil {
		return nil, err
	}
	var edits, latest []int64
	found := false
	for i := range sums {
		if sums[i].Edit != 0 {
			edits = append(edits, sums[i].Edit)
		}
		if sums[i].Latest != 0 && threads {
			latest = append(latest, sums[i].Latest)
		}
		found = found || !sums[i].empty()
	}
	if !found {
		return nil, nil
	}
	reader := b.reader
	quoted := map[int64]*roomserver.Event{}
	for _, nids := range [][]int64{edits, latest} {
		events, err := b.Rooms.EventsByNID(ctx, b.Room, nids)
		if err != nil {
			return nil, err
		}
		for _, e := range events {
			quoted[e.NID] = e
		}
	}
	if len(latest) > 0 {
		var nested []*roomserver.Event
		for _, nid := range latest {
			if e := quoted[nid]; !e.IsState() {
				nested = append(nested, e)
			}
		}
		inner, err := b.bundle(ctx, nested, false)
		if err != nil {
			return nil, err
		}
		reader.Relations = func(e *roomserver.Event) []byte { return inner[e.NID] }
	}
	out := map[int64][]byte{}
	for i := range sums {
		if sums[i].empty() {
			continue
		}
		if out[parents[i].NID], err = b.render(ctx, &sums[i], quoted, &reader); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// render makes the m.relations object of one event.
func (b *bundler) render(ctx context.Context, s *Summary, quoted map[int64]*roomserver.Event, reader *roomserver.Reader) ([]byte, error) {
	out := []byte{'{'}
	begin := func(name string) {
		if len(out) > 1 {
			out = append(out, ',')
		}
		out = append(append(out, name...), ':')
	}
	var err error
	if e := quoted[s.Edit]; e != nil {
		begin(`"m.replace"`)
		if out, err = b.Rooms.AppendClientEvent(ctx, out, b.Room, e, reader); err != nil {
			return nil, err
		}
	}
	if len(s.References) > 0 {
		begin(`"m.reference"`)
		out = append(out, `{"chunk":[`...)
		for i, id := range s.References {
			if i > 0 {
				out = append(out, ',')
			}
			out = append(canonicaljson.AppendString(append(out, `{"event_id":`...), id), '}')
		}
		out = append(out, "]}"...)
	}
	if e := quoted[s.Latest]; e != nil {
		begin(`"m.thread"`)
		out = append(out, `{"latest_event":`...)
		if out, err = b.Rooms.AppendClientEvent(ctx, out, b.Room, e, reader); err != nil {
			return nil, err
		}
		out = strconv.AppendInt(append(out, `,"count":`...), int64(s.Replies), 10)
		out = strconv.AppendBool(append(out, `,"current_user_participated":`...), s.Participated)
		out = append(out, '}')
	}
	return append(out, '}'), nil
}
