// Package queue sends what happens here to the servers that it concerns.
//
// # Events
//
// The queue follows the log. Events of local users go to the servers that were in the room before them
// (roomserver.Audience), as do those of others that this server brought into the room (roomserver.Event.Relayed). Nothing
// is copied: what a server is to be sent is a list of places in the log, in memory. It is bounded; beyond the
// bound, and for servers that do not answer, the last event of each room is written down in table federation_owed, and
// the server gets the others from its peers when it sees that they are missing; sticky events (MSC4354), which it must not
// miss, are sent after that, as they are to a server that comes into a room. A server that turns out to have been in a room
// without our knowing is owed the last event in the same way (MakeUp). The cursor in federation_cursor is
// behind everything that is neither delivered nor written down, so that a crash loses nothing; it may send an event
// twice, which harms nobody, since events are known by their ids.
//
// # Transactions
//
// A transaction that is not answered keeps its id and its content until it is, also across restarts (table
// federation_unreached): the server may have processed it. Its id is a hash of its content, so that even after a crash
// no id ever stands for two contents. A server that fails is tried again after a while that doubles up to maxBackoff,
// with jitter, or as soon as it makes a request here (Reached).
//
// # EDUs
//
// What must not be lost (messages to devices, changes of device lists) is kept by its own package, a Source, which is
// told when it has arrived. The rest, Volatile, is in memory, replaced by newer ones with the same key, and dropped
// where a server does not answer.
//
// # One slow server
//
// Each server has a goroutine while there is something to send to it, and one transaction under way. Servers that
// failed last time share a few slots of their own, so that those that hang do not use up the others'.
//
// spec: server-server-api v1.19 "Transactions", "PDUs", "EDUs"
package queue

import (
	"context"
	"embed"
	"encoding/json"
	"slices"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/myelin-im/myelin/federation/client"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/storage"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Schema is the part of the database that belongs to this package.
var Schema = storage.Schema{Feature: "federation_queue", FS: migrations}

const (
	// maxPDUs and maxEDUs bound a transaction (server-server API v1.19, "Transactions").
	maxPDUs = 50
	maxEDUs = 100
	// maxPending bounds the events for one server that are in memory, and maxVolatile its volatile EDUs.
	maxPending  = 500
	maxVolatile = 100
	// fastSlots and slowSlots bound the transactions under way: to servers that answered last time, and to those that
	// did not.
	fastSlots = 1000
	slowSlots = 50
	// saveEvery is how often the cursor is written.
	saveEvery = time.Second
)

// EDU is something other than an event that servers tell each other.
type EDU struct {
	Type    string
	Content json.RawMessage // an object
}

// Source keeps EDUs for other servers that must arrive. Each is written at a position of the log, with a notice of kind
// storage.Outgoing.
type Source interface {
	// Destinations returns the servers that are owed something that was written in (after, upTo].
	Destinations(ctx context.Context, after, upTo int64) ([]string, error)
	// Pending returns what a server is owed of (after, upTo], in order, about limit, and how far that goes. The Source may
	// give up what a server has not taken for long.
	Pending(ctx context.Context, destination string, after, upTo int64, limit int) (edus []EDU, next int64, err error)
	// Delivered says that a server has all up to a position.
	Delivered(ctx context.Context, destination string, upTo int64) error
}

// Config is what a Queue stands on.
type Config struct {
	// Name is our own server name.
	Name string
	// DB must have been opened with Schema.
	DB *storage.DB
	// Rooms has the events.
	Rooms *roomserver.Server
	// Client makes the requests.
	Client *client.Client
	// Source keeps EDUs that must arrive; nil if there is none.
	Source Source
	// Allowed tells whether a server may be talked to; nil for all.
	Allowed func(server string) bool
	// Log gets what operators should know.
	Log *logrus.Entry
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// Backoff is how long a server is left alone after its first failure; 0 takes 2 s.
	Backoff time.Duration
}

// Queue is what this server has to send to others. It is safe for concurrent use.
type Queue struct {
	cfg   Config
	began int64 // where the log ended when the queue was made

	news news

	mu      sync.Mutex
	ctx     context.Context // of Run; nil before and after it
	servers map[string]*destination
	pos     int64 // events up to here are in the servers' lists
	saved   int64 // the cursor as it is written
	workers sync.WaitGroup

	fast, slow chan struct{}
}

// news is what was written and is not on the servers' lists yet.
type news struct {
	sync.Mutex
	wake     chan struct{}
	rooms    map[int64]struct{} // with new events
	all      bool               // too many rooms to list
	outgoing bool               // the Source has something
	head     int64

	// What is being put on the lists.
	taken    map[int64]struct{}
	takenAll bool
}

// of tells whether there may be an event of a room at a position among the news.
func (n *news) of(room, pos int64) bool {
	n.Lock()
	defer n.Unlock()
	if n.head < pos || n.all || n.takenAll {
		return true
	}
	_, found := n.rooms[room]
	_, taken := n.taken[room]
	return found || taken
}

// listed says that what was taken is on the lists.
func (n *news) listed() {
	n.Lock()
	defer n.Unlock()
	n.taken, n.takenAll = nil, false
}

// New makes a Queue. It must be called before the first write.
func New(cfg Config) *Queue {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Backoff <= 0 {
		cfg.Backoff = 2 * time.Second
	}
	q := &Queue{cfg: cfg, began: cfg.DB.Head(), servers: map[string]*destination{}, fast: make(chan struct{}, fastSlots), slow: make(chan struct{}, slowSlots)}
	q.news.wake = make(chan struct{}, 1)
	q.news.rooms = map[int64]struct{}{}
	cfg.DB.Watch(q.notice)
	return q
}

// maxNews is how many rooms with new events are listed.
const maxNews = 10_000

// notice hears of what was written.
func (q *Queue) notice(batch []storage.Notice, head int64) {
	n := &q.news
	n.Lock()
	relevant := false
	for _, one := range batch {
		switch one.Kind {
		case storage.Event:
			if one.Private {
				continue
			}
			relevant = true
			if n.all = n.all || len(n.rooms) >= maxNews; !n.all {
				n.rooms[one.Room] = struct{}{}
			}
		case storage.Outgoing:
			relevant, n.outgoing = true, true
		}
	}
	n.head = head
	n.Unlock()
	if relevant {
		q.wake()
	}
}

// wake has follow look for news.
func (q *Queue) wake() {
	select {
	case q.news.wake <- struct{}{}:
	default:
	}
}

// Run sends until ctx ends, and then writes down what was not delivered. It is called once.
func (q *Queue) Run(ctx context.Context) {
	if err := q.load(ctx); err != nil {
		if ctx.Err() == nil {
			q.cfg.Log.WithError(err).Error("what other servers are owed cannot be read; nothing is sent to them")
		}
		return
	}
	var group sync.WaitGroup
	group.Go(func() { q.follow(ctx) })
	group.Go(func() { q.saveOften(ctx) })
	group.Wait()
	q.mu.Lock()
	q.ctx = nil // no more workers
	for _, d := range q.servers {
		if d.timer != nil {
			d.timer.Stop()
		}
	}
	q.mu.Unlock()
	q.workers.Wait()
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 1500*time.Millisecond)
	defer cancel()
	if err := q.saveAll(last); err != nil {
		q.cfg.Log.WithError(err).Warn("what other servers are owed could not be written down; some is sent again after the start")
	}
}

// Volatile sends an EDU to servers, as long as they answer. One with the same key that was not sent yet is replaced. What
// is fleeting is dropped at once where it cannot be sent; other EDUs wait until there are too many.
func (q *Queue) Volatile(servers []string, key string, e EDU, fleeting bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, name := range servers {
		if d := q.destination(name); d != nil {
			d.volatile(key, e, fleeting)
			q.kick(d)
			q.forget(d)
		}
	}
}

// Waiting tells whether a server that is to be sent the event of a room at a position may not have taken it yet.
func (q *Queue) Waiting(server string, room, pos int64) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.pos < pos && q.news.of(room, pos) {
		return true
	}
	d := q.servers[server]
	return d != nil && (d.lossy || d.kept || slices.Contains(d.pending, ref{room, pos}))
}

// Reached says that a server has made a request, so that it is worth another try.
func (q *Queue) Reached(server string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	d := q.servers[server]
	if d == nil || d.failures == 0 || d.running {
		return
	}
	// Not at once if the last try has just failed: it may be able to send and not to receive.
	if at := d.tried.Add(q.cfg.Backoff); at.Before(d.retry) {
		d.retry, d.contact = at, true
	}
	q.kick(d)
}
