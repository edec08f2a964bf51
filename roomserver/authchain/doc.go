// Package authchain answers questions about the auth events of one room: does one
// event rest on another, in which events do the full auth chains of several states
// differ, which events lie between conflicting ones. It never materialises a chain;
// what an answer costs grows with the answer and not with the room.
//
// # The graph
//
// Nodes are the room's accepted state events, outliers included, by their local
// numbers (nid); edges lead from an event to its auth_events. Each event has
//
//   - an order: a number that grows with every event added, so that an event always
//     has a higher one than all it rests on, whatever order its nid has;
//   - a generation: 1 + the highest one of its auth events. Depth, timestamps and
//     arrival are what a sender or the network says; the generation is a fact about
//     the graph. Walks go by descending generation, so that when they reach an event
//     they have seen everything above it;
//   - a place in a chain: events of one type and state key that rest on each other
//     (the power levels, one user's memberships) form a chain, within which
//     reachability is a comparison of two numbers. Every 16th event of a chain holds
//     a table of where the chain's events so far lead out of it, so that a search
//     passes a chain in at most 16 steps, however long it is. A chain ends where
//     the room forks, where its table would get too long, and where this process
//     cannot know that the event to be extended is still its last; then the next
//     event begins a new chain, which costs a search one step.
//
// # The full difference
//
// The auth difference of state resolution is over the full auth chains of all events
// of the states, including the many that all states share (room version 2, "Auth
// difference"). Difference walks down from the few events that the states do not
// share and stops at an event that is in every chain. That can be because all states
// reached it, which the walk sees, or because a shared event rests on it. For that
// it asks in this order: is it itself shared; does the shared event of the same type
// and state key rest on it; does any event above it that is shared, or is known to
// be in every chain. The last search goes up the graph. Children are known for the
// events of a window of recent ones; below it rows are scanned in ascending order,
// and as old events are nearly always covered by something soon after them, such
// a scan is short. An event that is in the difference was made on one side of a
// fork, so that what lies above it is what happened on that side since.
//
// # Rows
//
// Add returns a row to be stored with the event; an Index reads rows as it needs
// them and keeps a bounded number. Rows are immutable.
//
// The format is: a version byte; the order, the generation and the place in the
// chain (from 1) as varints; the signed distance from the nid to that of the
// chain's first event; the number of auth events and the signed distances to them,
// the previous event of the chain first if there is one; the number of entries of
// the table and the signed distances to them.
package authchain
