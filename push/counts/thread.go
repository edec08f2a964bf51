package counts

// maxHops is how far relations are followed to find a thread: "a maximum of 3 hops".
const maxHops = 3

// Relation is the m.relates_to of an event: rel_type and event_id, empty where they are missing or no strings.
type Relation struct{ Type, EventID string }

// ThreadRoot returns the event ID of the root of the thread to which an event with the given
// relation belongs, or "" if it belongs to the main timeline. parent looks up the relation of another
// event of the room and whether that event is known. Thread roots, and what relates to a root
// in other ways than by m.thread, are part of the main timeline.
//
// spec: client-server-api v1.19 "Threaded read receipts"
func ThreadRoot(r Relation, parent func(eventID string) (Relation, bool)) string {
	for hops := 0; ; hops++ {
		switch {
		case r.Type == "" || r.EventID == "":
			return ""
		case r.Type == "m.thread":
			return r.EventID
		case hops == maxHops:
			return ""
		}
		next, known := parent(r.EventID)
		if !known {
			return ""
		}
		r = next
	}
}
