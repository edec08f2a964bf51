package inbox

import (
	"context"
	"sync"
)

// Lanes run jobs: those of one lane one after the other, those of different lanes at the same time. A lane that waits,
// for example for a server that does not answer, holds no other up.
type Lanes struct {
	mu    sync.Mutex
	lanes map[string][]func(context.Context)
	slots chan struct{}
	ahead chan struct{}
	group sync.WaitGroup
	owed  map[string]int
	freed chan struct{} // closed and replaced when something was worked off
}

// maxAhead bounds what runs beside the lanes.
const maxAhead = 64

// NewLanes makes Lanes of which so many run at the same time.
func NewLanes(running int) *Lanes {
	return &Lanes{
		lanes: map[string][]func(context.Context){}, slots: make(chan struct{}, running), ahead: make(chan struct{}, maxAhead), owed: map[string]int{}, freed: make(chan struct{}),
	}
}

// Admit waits until a sender has less than limit of its work waiting, and books n on it. It returns false if ctx ended
// first.
func (l *Lanes) Admit(ctx context.Context, sender string, n, limit int) bool {
	for {
		l.mu.Lock()
		if have := l.owed[sender]; have == 0 || have+n <= limit {
			l.owed[sender] += n
			l.mu.Unlock()
			return true
		}
		freed := l.freed
		l.mu.Unlock()
		select {
		case <-freed:
		case <-ctx.Done():
			return false
		}
	}
}

// Release takes n off what Admit booked.
func (l *Lanes) Release(sender string, n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.owed[sender] -= n; l.owed[sender] <= 0 {
		delete(l.owed, sender)
	}
	close(l.freed)
	l.freed = make(chan struct{})
}

// Add queues a job in a lane. When ctx ends, jobs that have not begun are dropped.
func (l *Lanes) Add(ctx context.Context, lane string, job func(context.Context)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	queue, running := l.lanes[lane]
	l.lanes[lane] = append(queue, job)
	if !running {
		l.group.Go(func() { l.run(ctx, lane) })
	}
}

// Ahead runs fn beside the lanes, for a job that has to wait for its turn. It does nothing where as much as is good for the
// server is running there.
func (l *Lanes) Ahead(fn func()) {
	select {
	case l.ahead <- struct{}{}:
		l.group.Go(func() {
			defer func() { <-l.ahead }()
			fn()
		})
	default:
	}
}

// run works off one lane.
func (l *Lanes) run(ctx context.Context, lane string) {
	for {
		l.mu.Lock()
		queue := l.lanes[lane]
		if len(queue) == 0 || ctx.Err() != nil {
			delete(l.lanes, lane)
			l.mu.Unlock()
			return
		}
		job := queue[0]
		l.lanes[lane] = queue[1:]
		l.mu.Unlock()
		select {
		case l.slots <- struct{}{}:
			job(ctx)
			<-l.slots
		case <-ctx.Done():
		}
	}
}

// Wait waits until nothing runs.
func (l *Lanes) Wait() { l.group.Wait() }
