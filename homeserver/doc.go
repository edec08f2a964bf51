// Package homeserver puts a server together: configuration, signing key, database, features, listeners, and the order
// in which they start and stop. It is the only package that knows all others; a feature is one line in features.go.
//
// # Start
//
// Listeners are opened first, so that an address in use is found out before anything is touched and clients that
// come early wait instead of being refused. Then come the data folder with the signing key, the database with its
// migrations, and the features in the order in which they use each other. Only then are requests answered.
//
// # Stop
//
// Run ends when its context does: waiting requests (long polls) are answered at once, others may finish within
// drainTime, then features stop in the reverse order and the database is closed last, after its last flush. The
// whole takes less than five seconds.
package homeserver
