// Package directory serves what a user may learn of rooms without being in them: the published room directory with
// the lists of application services, space hierarchies, room summaries, and which rooms two users share.
//
// What is shown of a room (its summary) is made from its current state, kept in memory, and made anew once that state
// has another root. The directory is a sorted list of summaries that follows the log: only rooms of which a notice
// said that they changed are looked at again, so that a request costs neither reading state nor sorting.
//
// Pages of the directory begin after a room's place in the order, and pages of a hierarchy after a room of the walk;
// both tokens hold that place themselves, so they outlive restarts and cost no memory.
//
// Spec: client-server API v1.19, "Published room directory", "Discovering rooms within spaces", "Room Summaries",
// "Mutual Rooms"; application service API v1.19, "Published room directory".
package directory
