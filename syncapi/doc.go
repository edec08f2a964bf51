// Package syncapi serves everything that reads rooms: /sync, /messages, /context, /event, /state, /members and their
// relatives. It writes nothing but what connections of sliding sync were sent.
//
// A sync token names a position of the log. An answer tells what became true in (since, upTo], where
// upTo is the head of the log when the request arrived:
//
//   - timelines are the events that arrived there, in the order of arrival;
//   - state is the comparison of the room's resolved state at both ends, never a list of events;
//   - memberships are those of the user at both ends.
//
// Without state_after a client applies first state and then the timeline. A timeline may end with a state event that is not
// current, as it lost state resolution or as the filter hides what replaced it, and nothing in the same answer can say so:
// the token then names the room, and the next answer, which does not wait, has what is current in state, as far as the
// filter of state lets it through.
//
// State resolution may remove state without a replacement. Neither state nor state_after can say so, not even by telling
// all of it again: clients keep what they are not told otherwise, and there is no event to tell. So a room that has lost
// state comes with its summary, in which the members are counted without those who are gone, and a room that has lost
// the user's own membership is among those that they left. Sliding sync as it was accepted has stubs for state that is
// gone; its drafts have not.
//
// Which rooms are worth a look is decided by what memory knows (the tracker: the last position of each room), what
// they contain by the log. A request that finds nothing waits for a wake-up and looks again: losing a
// wake-up costs latency, never data.
//
// # Sliding sync
//
// A connection's state says of each room that its client was sent up to which position the client knows it, how deep and
// with which required state. An answer is the difference from there to the head for those rooms that the request's
// windows and subscriptions match, so a room that no window has simply stays behind until one has it again, and any
// request may be computed again. The pos is the number of the last answer that changed the state, and a log position for
// what is not told room by room. An answer without rooms changes no state and writes nothing. Both dialects, MSC4186 as
// it was accepted and as clients spoke it before, are read into one request and differ only in the names of the answer.
//
// Spec: client-server API v1.19, "Syncing", "Getting events for a room"; MSC4222 (state_after), MSC4115 (membership),
// MSC4186 (sliding sync), MSC3884, MSC3885, MSC3959, MSC3960, MSC3961, MSC4262, MSC4308, MSC4480 (its extensions),
// MSC4354 (sticky events), MSC4429 (profiles in /sync).
package syncapi
