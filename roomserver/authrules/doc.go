// Package authrules decides whether an event is authorised: the authorisation rules of room versions
// 1 to 12. It is a pure function of the event and of the state it is judged against; it has no
// clock, no network and no database, and it does not verify the signatures of events.
//
// An event is judged several times. CheckStateIndependent looks once at the events it cites; Check
// looks at its content, against the state that those events make up, against the state before
// the event, and against the current state of the room. Required is the selection of the
// events to cite.
//
// What the rules need to know of a state event is parsed once and kept in the event's cache slot:
// power levels, join rules, memberships and the create event's content.
//
// spec: server-server-api "Checks performed on receipt of a PDU", "Authorisation rules";
// rooms/v1 to rooms/v12 "Authorisation rules"
package authrules
