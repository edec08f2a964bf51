// Package pushers tells push gateways of events that notify users whose clients are asleep.
//
// # From an event to a gateway
//
// A commit marks the users with pushers whom it may concern. Workers judge for each of them what arrived since they
// looked last, by the function that also counts what is unread (package unread), and put what notifies into the queues of
// the user's pushers. Each pusher with something in its queue has one goroutine that delivers it in order; a gateway that
// hangs holds up nobody but its own pushers.
//
// How far a gateway was told is a position of the log in the pusher's row. After a restart what came since is judged again,
// so nothing is lost; what was told just before a crash may be told twice, with the same event_id.
//
// When a user reads on another device, gateways get the new number alone, so that badges go down at once. The
// number that each was told last is in the pusher's row, so that one that fell before a restart is told after it.
//
// A gateway that fails is tried again after a second, then after twice as long each time, up to an hour. What is older than
// a day is not told any more.
//
// Spec: client-server API v1.19 "Push Notifications"; push gateway API v1.19. Also MSC4076 (disable_badge_count).
package pushers
