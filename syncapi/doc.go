// Package syncapi serves everything that reads rooms: /sync, /messages, /context, /event, /state, /members and their
// relatives. It writes nothing.
//
// A sync token names a position of the log. An answer tells what became true in (since, upTo], where
// upTo is the head of the log when the request arrived:
//
//   - timelines are the events that arrived there, in the order of arrival;
//   - state is the comparison of the room's resolved state at both ends, never a list of events;
//   - memberships are those of the user at both ends.
//
// Which rooms are worth a look is decided by what memory knows (the tracker: the last position of each room), what
// they contain by the log. A request that finds nothing waits for a wake-up and looks again: losing a
// wake-up costs latency, never data.
//
// Spec: client-server API v1.19, "Syncing", "Getting events for a room"; MSC4222 (state_after), MSC4115 (membership).
package syncapi
