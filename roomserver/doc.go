// Package roomserver owns rooms: it is the only writer of events, state and memberships,
// and gives everyone else the reader's view of them.
//
// # Writing
//
// A room is written in its turn (Server.Turn): one writer at a time per room, different rooms in
// parallel, no network call inside. The turn builds or receives events, authorises them, computes
// the next state and hands one storage.Unit to the group commit; then the next turn of the same room
// may go on at once, before the unit is on disk. A Room therefore holds two immutable heads:
//
//   - durable, what is on disk; all readers and remote servers see only this one;
//   - next, what the last turn left behind; seen only by the next turn.
//
// When a unit fails, next falls back to durable and every unit that was built on the failed one
// fails with it (Room.epoch); Turn then runs again.
//
// # Events
//
// An event is stored once, in table events, under a number of its own (nid). Its state tells how
// others see it:
//
//   - a timeline event has a place in the room's history order, (anchor, sub): a live event has its
//     log position and 0; what was backfilled before position P has (P, -k);
//   - an outlier has neither place nor state: it is known only as part of an auth chain or of the
//     state of a join;
//   - a soft-failed event has state (others may build on it) but no place;
//   - a rejected event has no place and leaves the state before it unchanged.
//
// An event whose parents are not all known comes in with the state that another server describes (Incoming.Before), and
// leaves a Gap in the history before it, which Backfill fills.
//
// # State
//
// The state before and after an event is a root of the room's trie (package snapshot). Every change of
// the current resolved state is one row of state_log, so "what changed between two positions" is
// the comparison of two roots and never the list of timeline events. room_members is derived
// from the current state and can be rebuilt from it.
//
// Spec: server-server API v1.19 (PDUs, authorisation, state resolution), client-server API
// v1.19 (rooms), room versions 1 to 12.
package roomserver
