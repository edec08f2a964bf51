// Package counts counts what a user has not read in a room: notifications and highlights, for the
// main timeline and for each thread.
//
// The numbers are a function of the log. Each timeline event is judged once for a user by the push
// rules, the power levels and the member count at the event's position; it is unread from then on
// until a read receipt, a later event of the user's own in the same thread, or a redaction. Counting
// starts at the user's join. So anything here can be forgotten and worked out again, with the same
// result; a [Counter] keeps checkpoints so that it rarely has to, and a room that nobody asks about
// costs nothing.
//
// At the head of the log the numbers are exact. For an earlier position, receipts, redactions and
// the user's own events that came after it may count already. That only ever shows a message read
// too early, to a reader that is about to hear why, and never one unread that was not there.
//
// Messages that have expired are unread no more. What was once taken out for that stays out, also when
// the room's policy changes: it may have been purged meanwhile.
//
// The package knows neither database nor clock; what it reads comes through [Log].
//
// spec: client-server-api v1.19 "Receiving notifications", "Marking notifications as read",
// "Threaded read receipts"
package counts
