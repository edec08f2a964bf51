// Package snapshot holds the state of a room as an immutable set of
// (event type, state key) → event, shared structurally between the thousands of
// states a room goes through.
//
// # Shape
//
// A state is a persistent hash trie of fanout 16. Its upper levels are ordered by
// the hash of the event type and end in one node per type; below that node the
// state keys of the type are ordered by their own hash. An event is known by a
// local number, its nid (> 0). A change copies the nodes on one path, so that it
// costs O(log n) time and bytes, and two states that differ in k keys are compared
// by looking at O(k log n) nodes: everything else has the same address.
//
// The form is canonical. At most [bucketSize] keys below one point are always one
// bucket and more are always a branch; so equal states have equal shape in whatever
// order they were made, and what a comparison costs is bounded by what differs.
//
// # Addresses
//
// The new nodes of one change, one resolution or one join with its 100,000 members
// are one pack, named by a number that the caller chooses (usually the nid of the
// event that made them). A pack is written as rows of at most 256 nodes. A [Ref] is
//
//	pack (43 bits) | part (12 bits) | slot (8 bits)
//
// so that it fits a signed 64-bit column; Ref 0 is the empty state. The identifier
// of a row is pack<<12 | part: an ordinary change is the row pack<<12, a bulk build
// has consecutive parts of the same pack. A pack holds at most 2^20 nodes, about a
// million keys; more is [ErrTooLarge].
//
// # Hashes
//
// Types and state keys are hashed with SipHash-2-4 under a 16-byte secret seed of
// the room, and leaves hold all 64 bits (those of the path are implied). So the
// absence of a key, or the difference of two states, is decided without loading an
// event. Two keys of one type that share all 64 bits would be taken for the same
// key. Someone who does not know the seed can do no better than chance, because
// SipHash is a pseudo-random function and no answer of the server depends on hash
// order: a room of a million members holds such a pair with probability
// n²/2^65 ≈ 3·10⁻⁸, a room of 10,000 with 3·10⁻¹², and a lookup of an absent key
// errs with n/2^64. The seed must therefore be random, stay the same for the life
// of the room's rows and never leave the server. It also keeps the trie balanced:
// without it a stranger could choose user names that make it deep.
//
// # Bytes
//
// A row is a version byte, the number of nodes less one, the end offset of each
// node (16 bits, little endian) and the nodes. A node begins with a tag:
//
//	bit 0: branch (else bucket), bit 1: typed, bits 2-4: leaves of a bucket
//
// A typed node goes on with the 64-bit hash of its type and a varint with the
// number of keys below, followed by the root of the type's keys in place. A branch
// is a 16-bit map of its children and for each a varint index<<1|same, where same
// says that it lies in the pack of the child before (at first: the node's own
// pack), else the signed distance of the packs follows. A bucket holds for each
// leaf the bytes of its hash that the path does not give away, and the signed
// distance from the pack number to the nid.
package snapshot
