package syncapi

import (
	"cmp"
	"encoding/binary"
	"errors"
	"slices"
)

// slidingState is what a connection's client knows once it has processed an answer. It is immutable.
type slidingState struct {
	// seq is the number of the answer, base that of the answer it was built on; 0 is nothing.
	seq, base int64
	flags     stateFlags
	// configs are the required states in which rooms were sent; rooms refer to them by index.
	configs []sentConfig
	// rooms are those that the client was sent, by nid.
	rooms []sentRoom
}

// stateFlags say what of the extensions the client knows, for the connection or for one room.
type stateFlags uint8

const (
	// knowsData is set where the client has all account data up to the token's position.
	knowsData stateFlags = 1 << iota
	// knowsReceipts is the same for receipts.
	knowsReceipts
	// sentStay is set for a room that was sent as one that the user is or was in, not as an invite or knock.
	sentStay
	// sentDM is set for a room that was sent as a direct chat.
	sentDM
	// knowsThreads is set where the client has all thread subscriptions.
	knowsThreads
	// knowsProfiles is set for a room whose members' profiles the client has, as far as it knows the members.
	knowsProfiles
)

// sentConfig is a required state that was in use.
type sentConfig struct {
	text  string
	state stateConfig
}

// sentRoom is what the client knows of one room.
type sentRoom struct {
	// nid is the room's number; negative for a room that this server is not in.
	nid int64
	// at is the log position up to which the client knows the room.
	at int64
	// depth is how many of the newest events the client was sent without a gap, or may be taken to have been.
	depth int64
	// config is the index of the required state.
	config int64
	flags  stateFlags
	// unread and highlights are the counts that the client was told, plus one; 0 is none.
	unread, highlights int64
}

// maxSentConfigs bounds the required states of one connection, maxSentRooms its rooms. A connection beyond them ends.
const (
	maxSentConfigs = 200
	maxSentRooms   = 100_000
)

func findSent(rooms []sentRoom, nid int64) (int, bool) {
	return slices.BinarySearchFunc(rooms, nid, func(r sentRoom, nid int64) int { return cmp.Compare(r.nid, nid) })
}

// room returns what the client knows of a room.
func (s *slidingState) room(nid int64) (r sentRoom, known bool) {
	i, known := findSent(s.rooms, nid)
	if known {
		r = s.rooms[i]
	}
	return r, known
}

// slidingChange is what an answer changes in a state.
type slidingChange struct {
	flags   stateFlags
	configs []sentConfig // appended
	rooms   []sentRoom   // changed or new, in any order
}

// apply makes the next state.
func (s *slidingState) apply(seq int64, c *slidingChange) *slidingState {
	next := &slidingState{seq: seq, base: s.seq, flags: c.flags, configs: append(slices.Clip(s.configs), c.configs...)}
	added := 0
	for _, r := range c.rooms {
		if _, known := findSent(s.rooms, r.nid); !known {
			added++
		}
	}
	next.rooms = append(make([]sentRoom, 0, len(s.rooms)+added), s.rooms...)
	for _, r := range c.rooms {
		if i, known := findSent(s.rooms, r.nid); known {
			next.rooms[i] = r
		} else {
			next.rooms = append(next.rooms, r)
		}
	}
	if added > 0 {
		slices.SortFunc(next.rooms, func(a, b sentRoom) int { return cmp.Compare(a.nid, b.nid) })
	}
	return next
}

const slidingEncoding = 1

// encode appends a change, or with the change from nothing a whole state, in the form of table sliding_answers.
func (c *slidingChange) encode(b []byte) []byte {
	b = append(b, slidingEncoding, byte(c.flags))
	b = binary.AppendUvarint(b, uint64(len(c.configs)))
	for _, config := range c.configs {
		b = binary.AppendUvarint(b, uint64(len(config.text)))
		b = append(b, config.text...)
	}
	b = binary.AppendUvarint(b, uint64(len(c.rooms)))
	for _, r := range c.rooms {
		b = binary.AppendVarint(b, r.nid)
		for _, v := range []int64{r.at, r.depth, r.config, int64(r.flags), r.unread, r.highlights} {
			b = binary.AppendUvarint(b, uint64(v))
		}
	}
	return b
}

var errSlidingRow = errors.New("a row of sliding_answers cannot be read")

// decodeSlidingChange reads what encode wrote.
func decodeSlidingChange(b []byte) (*slidingChange, error) {
	if len(b) < 2 || b[0] != slidingEncoding {
		return nil, errSlidingRow
	}
	c := &slidingChange{flags: stateFlags(b[1])}
	d := varints{b: b[2:]}
	for n := d.next(); n > 0 && !d.bad; n-- {
		text := d.text()
		state, err := parseStateConfig(text)
		if err != nil || d.bad {
			return nil, errSlidingRow
		}
		c.configs = append(c.configs, sentConfig{text, state})
	}
	for n := d.next(); n > 0 && !d.bad; n-- {
		r := sentRoom{nid: d.signed(), at: d.next(), depth: d.next(), config: d.next(), flags: stateFlags(d.next()), unread: d.next(), highlights: d.next()}
		c.rooms = append(c.rooms, r)
	}
	if d.bad || len(d.b) > 0 {
		return nil, errSlidingRow
	}
	return c, nil
}

// varints reads numbers from bytes; bad says that there were too few.
type varints struct {
	b   []byte
	bad bool
}

func (d *varints) next() int64 {
	v, n := binary.Uvarint(d.b)
	return int64(v) + d.skip(n)
}

func (d *varints) signed() int64 {
	v, n := binary.Varint(d.b)
	return v + d.skip(n)
}

func (d *varints) skip(n int) int64 {
	if n <= 0 {
		d.bad, d.b = true, nil
		return 0
	}
	d.b = d.b[n:]
	return 0
}

func (d *varints) text() string {
	n := d.next()
	if n < 0 || n > int64(len(d.b)) {
		d.bad = true
		return ""
	}
	s := string(d.b[:n])
	d.b = d.b[n:]
	return s
}

// whole is the change that makes the state from nothing.
func (s *slidingState) whole() *slidingChange {
	return &slidingChange{flags: s.flags, configs: s.configs, rooms: s.rooms}
}
