package ephemeral

import (
	"sync"
	"time"
)

// State is what a user's presence is. Greater ones win when devices differ.
type State uint8

// The states.
const (
	Offline State = iota
	Unavailable
	Online
	// Busy is MSC3026's: the user is there and wants not to be disturbed.
	Busy
)

var stateNames = [...]string{Offline: "offline", Unavailable: "unavailable", Online: "online", Busy: "org.matrix.msc3026.busy"}

// String is the name in the protocol.
func (s State) String() string { return stateNames[s] }

// ParseState reads a name of the protocol.
func ParseState(name string) (State, bool) {
	for s, n := range stateNames {
		if n == name {
			return State(s), true
		}
	}
	return Offline, false
}

const (
	// idleAfter is after which time without activity somebody online becomes unavailable.
	idleAfter = 5 * time.Minute
	// activeFor is how long somebody online is "currently active" after doing something.
	activeFor = time.Minute
	// goneAfter is how long a device counts after its last request.
	goneAfter = 30 * time.Second
	// tick is how often the passing of time is looked at.
	tick = 5 * time.Second
	// maxPeople bounds the users remembered: beyond it, who is offline for longest is forgotten.
	maxPeople = 100_000
	// maxDevices bounds the devices of one user that are remembered.
	maxDevices = 100
)

// presence is who is online. People stand in a list in the order of their last visible changes.
type presence struct {
	mu     sync.Mutex
	people map[string]*person // guarded by mu, as is everything below
	// stamp grows with each visible change; whoever changed at or before floor may have been forgotten.
	stamp, floor int64
	first, last  *person
	// dirty are those of whose change nobody has been told yet.
	dirty map[string]struct{}
	// unsaved are status messages that are not in the database yet.
	unsaved map[string]string
	present int // people who are not offline

	// These belong to the background.
	nextTick, nextTell, nextSave time.Time
}

func newPresence() *presence {
	return &presence{people: map[string]*person{}, dirty: map[string]struct{}{}, unsaved: map[string]string{}}
}

// person is one user.
type person struct {
	user       string
	prev, next *person
	changed    int64 // stamp of the last visible change
	devices    map[string]*device
	lastActive time.Time
	told       *told // what another server says of its user; nil for our own
	// What others see. shown is complete only together with lastActive.
	state  State
	active bool
	status string
}

// device is what one device of a user says.
type device struct {
	state   State
	since   time.Time // when it began to say so
	polls   int       // its requests that wait now
	lastSay time.Time // its last request
}

// alive tells whether the device still counts.
func (d *device) alive(now time.Time) bool { return d.polls > 0 || now.Sub(d.lastSay) < goneAfter }

// judge works out what others see of a person now.
func (p *person) judge(now time.Time) (s State, active bool) {
	if p.told != nil {
		return p.told.judge(now)
	}
	var since time.Time
	for _, d := range p.devices {
		if !d.alive(now) {
			continue
		}
		if d.state > s {
			s = d.state
		}
		if d.since.After(since) {
			since = d.since
		}
	}
	idle := now.Sub(p.lastActive)
	switch {
	case s == Online && idle >= idleAfter:
		return Unavailable, false
	case s == Unavailable && p.lastActive.After(since) && idle < idleAfter:
		// "Any activity that bumps the last active time on any of the user's clients will cause the server
		// to automatically set their presence to online."
		s = Online
	}
	return s, s == Online && idle < activeFor
}

// update makes what others see of a person what it should be now.
func (p *presence) update(who *person, now time.Time) {
	s, active := who.judge(now)
	if s == who.state && active == who.active {
		return
	}
	if who.state == Offline {
		p.present++
	} else if s == Offline {
		p.present--
	}
	who.state, who.active = s, active
	p.touch(who)
}

// touch notes a visible change.
func (p *presence) touch(who *person) {
	p.unlink(who)
	p.stamp++
	who.changed, who.prev = p.stamp, p.last
	if p.last != nil {
		p.last.next = who
	} else {
		p.first = who
	}
	p.last = who
	p.dirty[who.user] = struct{}{}
}

// unlink takes a person out of the list, if they stand in it.
func (p *presence) unlink(who *person) {
	if who.changed == 0 {
		return
	}
	if who.prev != nil {
		who.prev.next = who.next
	} else {
		p.first = who.next
	}
	if who.next != nil {
		who.next.prev = who.prev
	} else {
		p.last = who.prev
	}
	who.prev, who.next = nil, nil
}

// entry returns the entry of a user, making it with the status message that was set last.
func (p *presence) entry(user, status string) *person {
	if who := p.people[user]; who != nil {
		return who
	}
	who := &person{user: user, status: status, devices: map[string]*device{}}
	p.people[user] = who
	for old := p.first; old != nil && len(p.people) > maxPeople; {
		next := old.next
		if old.state == Offline {
			p.unlink(old)
			delete(p.people, old.user)
			p.floor = max(p.floor, old.changed)
		}
		old = next
	}
	return who
}

// say notes what a device says of its user.
func (p *person) say(id string, s State, now time.Time) *device {
	d := p.devices[id]
	if d == nil {
		if len(p.devices) >= maxDevices {
			p.forgetDevices(now)
		}
		d = &device{}
		p.devices[id] = d
	}
	if d.state != s || !d.alive(now) {
		if s >= Online && (d.state < Online || !d.alive(now)) {
			p.lastActive = now
		}
		d.state, d.since = s, now
	}
	d.lastSay = now
	return d
}

// forgetDevices forgets those that do not count any more, or if all do, some of them.
func (p *person) forgetDevices(now time.Time) {
	for id, d := range p.devices {
		if !d.alive(now) {
			delete(p.devices, id)
		}
	}
	for id, d := range p.devices {
		if len(p.devices) < maxDevices {
			return
		}
		if d.polls == 0 {
			delete(p.devices, id)
		}
	}
}

// showAgain makes a user's presence news for everybody, if they are not offline: they came into a room.
func (p *presence) showAgain(user string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	who := p.people[user]
	if who == nil || who.state == Offline {
		return false
	}
	p.touch(who)
	return true
}

// bump notes that a user does something, and tells whether others can see that.
func (p *presence) bump(user string, now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	who := p.people[user]
	if who == nil || now.Before(who.lastActive) {
		return false
	}
	who.lastActive = now
	before := p.stamp
	p.update(who, now)
	return p.stamp != before
}

// age looks at the passing of time.
func (p *presence) age(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.present == 0 {
		return
	}
	for who := p.first; who != nil; {
		next := who.next // update moves to the end; there it is looked at again, which does no harm
		if who.state != Offline {
			p.update(who, now)
			if who.state == Offline {
				clear(who.devices)
			}
		}
		who = next
	}
}

// Presence is what others see of a user.
type Presence struct {
	// User is the user's ID.
	User string
	// State is what they are.
	State State
	// LastActive is when they were last seen to do something; zero if they never were.
	LastActive time.Time
	// CurrentlyActive tells that they are doing something, so that LastActive is not kept current.
	CurrentlyActive bool
	// Status is the status message, empty if there is none.
	Status string
}

func (p *person) presence() Presence {
	return Presence{p.user, p.state, p.lastActive, p.active, p.status}
}

// since returns up to limit people who changed after a stamp, in the order of change, and the stamp up to which these
// are all. Below all stamps, with a negative one, it returns who is not offline.
func (p *presence) since(stamp int64, limit int) (list []Presence, upTo int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if stamp == p.stamp {
		return nil, stamp
	}
	who := p.first
	if stamp >= 0 { // what is new stands at the end, and is little
		who = nil
		for at := p.last; at != nil && at.changed > stamp; at = at.prev {
			who = at
		}
	}
	upTo = stamp
	for ; who != nil; who = who.next {
		if len(list) == limit {
			return list, upTo
		}
		if upTo = who.changed; stamp >= 0 || who.state != Offline {
			list = append(list, who.presence())
		}
	}
	return list, p.stamp
}
