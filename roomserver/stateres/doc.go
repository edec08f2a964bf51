// Package stateres merges the states of a room that several events left behind: state
// resolution as room versions 1 (v1), 2 to 11 (v2) and 12 (v2.1, MSC4297) define it.
//
// It is a pure function of the states, the events and the graph of their auth events; it
// has no clock, no network and no database. What it costs grows with what the states
// disagree about and not with the room: conflicts are found by comparing snapshots, the
// auth difference is asked of an authchain.Index, and state that is not in conflict is
// looked up one key at a time, by the rules that need it. The result is an edit of the
// state that is nearest to it.
//
// # Where the text leaves room
//
// All servers of a room must get the same result, so where the specification can be read
// in two ways we do what the servers in use do:
//
//   - a power event brings along those events of its auth chain that are in the full
//     conflicted set and that it reaches through events of that set. In v2.1 these are all
//     of its chain that are in the set: what lies between two conflicting events is in it;
//   - m.room.power_levels and m.room.join_rules are power events with an empty state key
//     only; others mean nothing to the authorisation rules;
//   - in v1 a conflict of m.room.member is resolved for each user by itself, judged by the
//     state that is not in conflict and by the power levels and join rules already
//     resolved, so that the order of users does not matter; and if none of several other
//     events is allowed, the one of the lowest depth stands.
//
// Rejected events are in no result, and are not used to judge others.
//
// spec: rooms/v1 "State resolution", rooms/v2 "State resolution", rooms/v12 "State resolution"
package stateres
