// Package delayed sends events later: reminders, messages that end themselves, and above all the leave of a call's member
// whose client stops restarting it.
//
// A delayed event is a row until it is finalised: sent, cancelled, or refused when its time came. Its sending and the
// end of its row are one unit, so that it is sent once also where the process dies in between. What came due while the
// server was off is sent at its start, in the order in which it was due. Nothing is authorised before it is sent.
//
// Who knows the id of a delayed event may restart, cancel or send it without a token, because clients hand it to the
// service that carries their call and sees sooner than the homeserver that they are gone. Ids are therefore random, 192
// bits of them, and never logged. With a token, only one's own events can be managed.
//
// A delayed event outlives the device that scheduled it, since that is what it is for; it ends with the account. A newer
// state event in its place does not cancel it.
//
// Spec: MSC4140, and the two forms of it that clients spoke before: a query parameter of /send and /state, and the
// action in the body of the request that manages an event.
package delayed
