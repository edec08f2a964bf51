// Package ephemeral owns what is shown beside the timeline of rooms and is no event of it: receipts and read markers,
// typing and presence.
//
// # Receipts
//
// A receipt is a row of table receipts, replaced when it moves, at the log position of its last move. It only ever moves
// forward in the room's history order, whatever the order in which clients say so. Private receipts are
// announced with a notice of their own (storage.PrivateReceipt) and shown to their user alone. The read marker
// m.fully_read is room account data; the table holds its place, so that it does not move back either.
//
// A receipt of another server's user for an event that is not known here waits for it in table waiting_receipts. If it is
// the user's first one, it is shown at once, without a place in the history order: the event says what comes after it.
//
// Memory holds the last position of each room with a receipt since the start, the newest receipts of rooms that somebody
// follows, and the receipts of users whose unread events somebody counts, so that a message to a room with many
// readers reads nothing from the database.
//
// # Typing and presence
//
// Neither is in the log. They live in memory, and readers know them by stamps: a number of this boot (API.Boot) and
// counters that grow with each change. Who comes with a stamp of another boot, or with one that is older than what is
// remembered, gets what is current.
//
// A user's presence is made of what their devices say and of when they were last active. Only what others can see
// makes a change: a state, a status message, and whether the user is "currently active"; the time of last activity
// alone does not. A change wakes those who wait and share a room of at most maxAudience members with the user,
// once a second at most; others hear of it when something else makes them look. Nothing of it outlives a restart but
// the status message, which is written down some seconds after it changed.
//
// Spec: client-server API v1.19, "Receipts", "Read and unread markers", "Typing Notifications", "Presence"; MSC3026
// (busy).
package ephemeral
