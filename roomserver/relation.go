package roomserver

import (
	"bytes"
	"errors"
	"net/http"
	"slices"

	"github.com/myelin-im/myelin/internal/canonicaljson"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/roomserver/pdu"
	"github.com/myelin-im/myelin/storage"
)

// link is a relation as it is indexed: what an event says in m.relates_to (client-server API v1.19, "Forming
// relationships between events"). A rich reply without a rel_type is none, and a redacted event has none.
type link struct {
	// Type is rel_type and Target event_id, both 1 to 255 bytes.
	Type, Target string
}

// RelationKind classifies relations by what this server does with them. The numbers are in the database.
type RelationKind int64

// The kinds of relations.
const (
	// OtherRelation is only listed.
	OtherRelation RelationKind = iota
	// Replacement is an m.replace that could be valid by its form: no state event, with new content or encrypted.
	Replacement
	// ThreadReply is m.thread.
	ThreadReply
	// Reference is m.reference.
	Reference
	// Annotation is m.annotation.
	Annotation
	// InThread is what an event says in m.relationship (MSC2836), which only Relationships asks about.
	InThread
)

// maxRelationField bounds rel_type and event_id of a relation, as event types and ids are bounded.
const maxRelationField = 255

func linkOf(p *pdu.Event) (link, bool) { return linkIn(p, "m.relates_to") }

// linkIn reads the relation in a member of an event's content.
func linkIn(p *pdu.Event, name string) (link, bool) {
	m := p.ContentField(name)
	if len(m) == 0 || m[0] != '{' {
		return link{}, false
	}
	typ, ok1 := canonicaljson.DecodeString(canonicaljson.Member(m, "rel_type"))
	target, ok2 := canonicaljson.DecodeString(canonicaljson.Member(m, "event_id"))
	if !ok1 || !ok2 || len(typ) == 0 || len(target) == 0 || len(typ) > maxRelationField || len(target) > maxRelationField {
		return link{}, false
	}
	return link{string(typ), string(target)}, true
}

// kind classifies the relation that p has.
func (r link) kind(p *pdu.Event) RelationKind {
	switch r.Type {
	case "m.thread":
		return ThreadReply
	case "m.reference":
		return Reference
	case "m.annotation":
		return Annotation
	case "m.replace":
		content := p.ContentField("m.new_content")
		if !p.IsState() && (p.Type == "m.room.encrypted" || len(content) > 0 && content[0] == '{') {
			return Replacement
		}
	}
	return OtherRelation
}

var relationsTable = storage.DeclareTable("relations", storage.Insert,
	storage.Col("room", storage.Int), storage.Col("target", storage.Bytes),
	storage.Col("anchor", storage.Int), storage.Col("sub", storage.Int), storage.Col("child", storage.Int), storage.Col("event_id", storage.Bytes),
	storage.Col("kind", storage.Int), storage.Col("rel_type", storage.Bytes),
	storage.Col("type", storage.Bytes), storage.Col("sender", storage.Bytes))

// indexed is a relation that has a row.
type indexed struct {
	link
	kind RelationKind
}

// indexedOf lists the relations of an event that have rows: what it says in m.relates_to and, if that names another event,
// in m.relationship.
func indexedOf(p *pdu.Event) (list []indexed) {
	r, ok := linkOf(p)
	if ok {
		list = append(list, indexed{r, r.kind(p)})
	}
	if t, also := linkIn(p, "m.relationship"); also && !(ok && t.Target == r.Target) {
		list = append(list, indexed{t, InThread})
	}
	return list
}

// related is an event of a unit together with one of its relations.
type related struct {
	event *Event
	indexed
}

// writeRelations adds the rows of relations, and takes away those of events that are redacted.
func (t *Turn) writeRelations() {
	redacted := make(map[int64]bool, len(t.redacts))
	for _, x := range t.redacts {
		redacted[x.target.NID] = true
		for _, r := range indexedOf(x.target.Event) {
			t.unit.Exec(`DELETE FROM relations WHERE room = $1 AND target = $2 AND child = $3
				AND anchor = (SELECT anchor FROM events WHERE nid = $3)`, t.room.NID, eventKey(r.Target), x.target.NID)
		}
	}
	for _, e := range t.events {
		if e.offset == 0 && e.Anchor == 0 || redacted[e.NID] {
			continue
		}
		for _, r := range indexedOf(e.Event) {
			t.relations = append(t.relations, related{e, r})
			t.unit.Add(relationsTable, t.room.NID, eventKey(r.Target), e.anchorValue(), e.Sub, e.NID, eventKey(e.ID),
				int64(r.kind), r.Type, e.Type, e.Sender)
		}
	}
}

// applyRelations advances what memory knows of relations; the events have their places.
func (t *Turn) applyRelations() {
	cache := &t.s.relations
	for _, e := range t.awaited {
		cache.unsure(t.room.NID, e)
	}
	for i := range t.relations {
		cache.add(t.room.NID, &t.relations[i])
	}
	for _, x := range t.redacts {
		for _, r := range indexedOf(x.target.Event) {
			cache.remove(t.room.NID, r.Target, x.target.NID)
		}
	}
}

// await notes a received event to which an earlier one relates already.
func (t *Turn) await(e *Event) error {
	found := slices.ContainsFunc(t.unwritten(), func(p *Event) bool {
		r, ok := linkOf(p.Event)
		return ok && r.Target == e.ID
	})
	if !found {
		var err error
		if found, err = t.relatedTo(e.ID); err != nil {
			return err
		}
	}
	if found {
		t.awaited = append(t.awaited, e)
	}
	return nil
}

var (
	errNestedThread        = mxerr.New(http.StatusBadRequest, "M_UNKNOWN", "A thread cannot start at an event that itself relates to another")
	errDuplicateAnnotation = mxerr.New(http.StatusBadRequest, "M_DUPLICATE_ANNOTATION", "You have annotated the event like that already")
	errUnknownRelationship = mxerr.NotFound("The event that m.relationship names is unknown")
)

// checkRelation refuses relations that local users may not make (client-server API v1.19, "Validation of m.thread
// relationships", "Avoiding duplicate annotations"; MSC2836, "Making relationships").
func (t *Turn) checkRelation(p *pdu.Event) error {
	if r, ok := linkIn(p, "m.relationship"); ok {
		if err := t.checkRelationship(p.Sender, r.Target); err != nil {
			return err
		}
	}
	r, ok := linkOf(p)
	if !ok {
		return nil
	}
	switch r.kind(p) {
	case ThreadReply:
		if t.s.relations.threadRoot(t.room.NID, r.Target) {
			return nil
		}
		root, err := t.find(r.Target)
		if err != nil || root == nil {
			return err
		}
		if _, ok := linkOf(root.Event); ok {
			return errNestedThread
		}
	case Annotation:
		return t.checkAnnotation(p, r)
	}
	return nil
}

// checkRelationship refuses an m.relationship with an event that this server does not have and no other has told of. An event
// of another room is only known to those who may see it.
func (t *Turn) checkRelationship(sender, target string) error {
	e, err := t.find(target)
	if err != nil || e != nil {
		return err
	}
	if nid, ok := t.s.RoomOfDetached(target); ok && nid == t.room.NID {
		return nil
	}
	room, e, err := t.s.FindEvent(t.ctx, target)
	if errors.Is(err, ErrUnknownEvent) {
		return errUnknownRelationship
	}
	if err != nil {
		return err
	}
	viewer, err := t.s.Viewer(t.ctx, room, sender, room.Head().Pos)
	if err != nil {
		return err
	}
	sees := viewer.Sees
	if e.Outlier() {
		sees = viewer.SeesDetached
	}
	if ok, err := sees(t.ctx, e); err != nil || ok {
		return err
	}
	return errUnknownRelationship
}

// maxAnnotations bounds how many annotations of one user on one event are compared with a new one.
const maxAnnotations = 1000

// checkAnnotation compares a new annotation with those that its sender made of the same event.
func (t *Turn) checkAnnotation(p *pdu.Event, r link) error {
	key := annotationKey(p)
	same := func(e *Event) bool {
		old, ok := linkOf(e.Event)
		return ok && old == r && e.Type == p.Type && e.Sender == p.Sender && bytes.Equal(annotationKey(e.Event), key)
	}
	redacted := map[int64]bool{}
	for _, x := range t.redacts {
		redacted[x.target.NID] = true
	}
	t.room.mu.Lock()
	for _, e := range t.room.pending.byNID {
		if same(e) && !redacted[e.NID] {
			t.room.mu.Unlock()
			return errDuplicateAnnotation
		}
	}
	t.room.mu.Unlock()
	nids, err := storage.ReadList[int64](t.ctx, t.s.db, `SELECT child FROM relations WHERE room = $1 AND target = $2 AND sender = $3 AND kind = 4 ORDER BY child DESC LIMIT $4`,
		t.room.NID, eventKey(r.Target), p.Sender, int64(maxAnnotations))
	if err != nil || len(nids) == 0 {
		return err
	}
	events, err := t.s.eventsByNID(t.ctx, t.room, nids)
	if err != nil {
		return err
	}
	for _, e := range events {
		if same(e) && !redacted[e.NID] {
			return errDuplicateAnnotation
		}
	}
	return nil
}

// annotationKey is the canonical JSON of the key in m.relates_to.
func annotationKey(p *pdu.Event) []byte {
	return canonicaljson.Member(p.ContentField("m.relates_to"), "key")
}
