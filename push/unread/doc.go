// Package unread counts what users have not read, by what the other parts of the server know: it is the log of
// package counts, over rooms (roomserver), receipts (ephemeral), push rules (push) and ignored users (accounts).
//
// What a count needs of an event is worked out once for all users of the room and kept in a bounded cache. So a message
// to a room with many readers costs each of them some microseconds and no read from the database.
//
// Checkpoints are written to table unread_checkpoints now and then, in the background.
package unread
