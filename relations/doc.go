// Package relations sums up what relates to an event for the user who is shown it: the latest edit, the
// thread that starts at it, the events that refer to it. Clients find this under m.relations in unsigned.
// It also walks threads, up or down from an event, for users and for other servers (Walk, MSC2836), and remembers
// what those have of threads that this server lacks (Explorer).
//
// The events that relate to another one are indexed by roomserver as they are written, so that a relation which
// comes before its target is found as well. What is shown of them depends on the reader: whom they ignore, what
// they may see, and whether they took part.
//
// Spec: client-server API v1.19, "Aggregations of child events", "Event replacements", "Threading", "Reference relations";
// MSC2836.
package relations
