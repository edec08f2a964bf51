package storage

// Kind says what a notice is about.
type Kind uint8

// The kinds of notices, listed in one place because nodes of a cluster exchange them: the numbers
// must not change. Typing and presence are not in the log and so have no kind.
const (
	// Event is a timeline event of Room.
	Event Kind = iota + 1
	// State is a change of Room's resolved state.
	State
	// Membership is a change of User's membership of Room (also of rooms this server is not in).
	Membership
	// Receipt is a receipt in Room, by User, that all members of the room see.
	Receipt
	// AccountData is User's account data, of Room or global if Room is 0.
	AccountData
	// ToDevice is a to-device message for User.
	ToDevice
	// DeviceList is a change of User's devices, keys or cross-signing identity.
	DeviceList
	// PushRules is a change of User's push rules.
	PushRules
	// PrivateReceipt is a receipt in Room that only User sees, who sent it.
	PrivateReceipt
	// Directory is a change of the lists of public rooms that Room is in.
	Directory
	// DeviceKeys is a change of User's identity keys: those of a device, its name, or cross-signing keys and signatures.
	DeviceKeys
	// OneTimeKeys is a change of how many one-time keys or unused fallback keys User's devices have.
	OneTimeKeys
	// Outgoing is something other than an event that another server is owed.
	Outgoing
	// Pushers is a change of User's pushers.
	Pushers
	// Profile is a change of User's profile.
	Profile
)

// Notice tells subscribers that something exists at a position; they look for themselves.
type Notice struct {
	// Pos is the position. In Unit.Notices it is the offset k of storage.Pos until the commit.
	Pos int64
	// Kind says what happened.
	Kind Kind
	// Room is the numeric id of the room concerned, or 0.
	Room int64
	// User is the full Matrix ID of the user concerned, or empty.
	User string
	// Private is true of an Event that no other server is to be sent; false where that is not certain.
	Private bool
}
