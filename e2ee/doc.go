// Package e2ee is what the server does for end-to-end encryption: keys of devices and users, one-time keys, key
// backups, messages to devices, and who has to hear of changed devices.
//
// The server sees none of what is encrypted. What it owes to clients is that they always know the devices they encrypt
// for and that what one device sends to another arrives: every gap here is a message that somebody cannot decrypt.
//
// # Keys
//
// A user's identity (keys of devices, cross-signing keys, the signatures on them) is rendered once and kept in memory
// until it changes; asking for keys joins such pieces. One-time keys are given out once each, in the order of their
// uploads; claiming is a write, so that no two claims see the same key. Signatures that are there are checked; a device may
// replace its identity keys, although others will distrust it, because to refuse them would leave the old ones published,
// with one-time keys that nobody can use any more. Keys of remote users are stored while a room is
// shared with them, since only then does their server tell of changes; otherwise their server is asked each time.
//
// # Lists of devices
//
// Every change of a user's devices or identity has a position in the log. What a client has to hear between two
// positions (DeviceLists) is computed from those and from the states of its user's rooms at both, never from events.
//
// # Messages to devices
//
// A message is a row in the inbox of a device, deleted when the device comes back with a token that covers it. Only inboxes
// that have grown out of all proportion lose messages otherwise (boundInbox).
//
// # Other servers
//
// What they are owed are rows as well (Pending), written with what caused them or by a follower of the log. Package
// federation delivers them and says so (Delivered).
//
// Spec: client-server API v1.19, "End-to-End Encryption", "Send-to-Device messaging"; server-server API v1.19, "Device
// Management", "End-to-End Encryption"; MSC3814 (dehydrated devices).
package e2ee
