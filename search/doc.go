// Package search finds messages and users: full-text search over the rooms of a user that are not encrypted, and the user
// directory.
//
// # The index
//
// A reader behind the log keeps the index up to date with a durable cursor: it visits the rooms that have news, looks
// at the events that arrived and at the difference between two states, and writes in small batches, so that those who
// write rooms hardly notice. After a restart it goes on where it was. Everything here can be rebuilt from the log: without
// a cursor it begins at the start. Of what took a place in the past of a room the log does not tell: it is listed, in the
// unit that writes it, until it is in the index. A request waits a moment for the reader, so that a client finds what it has just sent.
//
// Package words cuts text into terms, the same for both databases, and package storage finds rows by terms. Beside words,
// each row has terms that no text can have, for what it belongs to: "_r7" for room 7, so that a search never looks at
// rooms of others, however common a word is.
//
// # Messages
//
// A message has the number of its place in history and the words that it has after its last valid edit; a redaction takes
// them away. A search looks at the newest matches, up to a bound, leaves out what history visibility hides from the user,
// and ranks the rest by how often and how closely together they have the words.
//
// # Users
//
// A user has the words of their name and user id, a term for each room that they are joined to, and one more if a room
// of theirs is open to everybody. So a search for users whom the searcher may see is one query too.
//
// Spec: client-server API v1.19, "Server Side Search", "User Directory".
package search
