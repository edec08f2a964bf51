// Package threads keeps to which threads users have subscribed.
//
// Clients subscribe when their user writes in a thread or asks for it, and automatically when the user is mentioned
// there. An automatic subscription names the event that caused it, so that a device which was long away does not undo
// that the user has unsubscribed since: it is refused for an event that arrived before that.
//
// Each change takes a position in the log, by which sliding sync tells of it (MSC4308); the position is also the bump
// stamp, by which clients know the latest of several states.
//
// Spec: MSC4306, MSC4308, under the names that they have while they are unstable. Package push/rules has its push
// rules, which come into force with a user's first subscription: clients that know nothing of subscriptions expect to be
// notified of all threads.
package threads
