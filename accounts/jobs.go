package accounts

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/myelin-im/myelin/storage"
)

// The kinds of jobs, as stored.
const (
	jobProfile  = 1 // data is a ProfileChange
	jobLeaveAll = 2
)

const (
	// jobWorkers bounds the users whose jobs are worked off at the same time.
	jobWorkers = 4
	// jobBatch bounds the jobs read at once.
	jobBatch = 64
	// jobRetryMin and jobRetryMax bound the wait after a failure, which doubles.
	jobRetryMin = 5 * time.Second
	jobRetryMax = time.Hour
	// jobLook is how often jobs are looked for that another process wrote.
	jobLook = time.Minute
)

// jobs works off what changes of accounts bring with them in rooms. The jobs of one user run one after the other in
// the order of their making, so that the last change of a profile is the one that stays.
type jobs struct {
	api *API
	// poke tells run that there may be something to do.
	poke chan struct{}

	mu   sync.Mutex
	done map[int64]chan struct{} // guarded by mu: who waits for which job
}

// job is a row of account_jobs.
type job struct {
	id       int64
	userID   string
	kind     int64
	data     []byte
	attempts int64
	nextTS   int64
}

func newJobs(a *API) *jobs {
	return &jobs{api: a, poke: make(chan struct{}, 1), done: map[int64]chan struct{}{}}
}

// prepare makes a job, to be written in the transaction of what it follows from.
func (q *jobs) prepare(ctx context.Context, userID string, kind int64, data any) (*job, error) {
	id, err := q.api.jobIDs.Next(ctx)
	if err != nil {
		return nil, err
	}
	j := &job{id: id, userID: userID, kind: kind, data: []byte{}, nextTS: q.api.nowMS()}
	if data != nil {
		if j.data, err = json.Marshal(data); err != nil {
			return nil, fmt.Errorf("encode job: %w", err)
		}
	}
	return j, nil
}

func (j *job) write(tx *storage.Tx) error {
	_, err := tx.Exec(`INSERT INTO account_jobs (id, user_id, kind, data, attempts, next_ts) VALUES ($1, $2, $3, $4, 0, $5)`,
		j.id, j.userID, j.kind, j.data, j.nextTS)
	return err
}

// wake makes run look for jobs.
func (q *jobs) wake() {
	select {
	case q.poke <- struct{}{}:
	default:
	}
}

// await returns a channel that is closed once a job is done; drop must be called when nobody waits any longer.
func (q *jobs) await(id int64) (done <-chan struct{}, drop func()) {
	c := make(chan struct{})
	q.mu.Lock()
	defer q.mu.Unlock()
	q.done[id] = c
	return c, func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		delete(q.done, id)
	}
}

// finished tells who waits for a job.
func (q *jobs) finished(id int64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if c := q.done[id]; c != nil {
		close(c)
		delete(q.done, id)
	}
}

// run works off jobs until ctx ends, and returns when the last one at work has stopped.
func (q *jobs) run(ctx context.Context) {
	busy := map[string]bool{} // users with a job at work
	results := make(chan string)
	for {
		due, next, err := q.load(ctx, busy)
		if err != nil && ctx.Err() == nil {
			q.api.log.WithError(err).Warn("cannot read jobs of accounts")
			next = q.api.now().Add(jobRetryMin)
		}
		for _, j := range due {
			if len(busy) >= jobWorkers || busy[j.userID] {
				continue
			}
			busy[j.userID] = true
			go func() {
				q.work(ctx, j)
				results <- j.userID
			}()
		}
		var timer <-chan time.Time
		if len(busy) < jobWorkers { // else a result comes first
			wait := jobLook
			if !next.IsZero() {
				wait = min(max(next.Sub(q.api.now()), 10*time.Millisecond), jobLook)
			}
			timer = time.After(wait)
		}
		select {
		case <-ctx.Done():
			for range busy {
				<-results
			}
			return
		case userID := <-results:
			delete(busy, userID)
		case <-q.poke:
		case <-timer:
		}
	}
}

// load reads the first job of each user that is not busy, as far as it is due, and when the next one will be.
func (q *jobs) load(ctx context.Context, busy map[string]bool) (due []*job, next time.Time, err error) {
	now := q.api.nowMS()
	err = q.api.db.Read(ctx, func(tx *storage.Tx) error {
		due, next = nil, time.Time{}
		rows := tx.Query(`SELECT id, user_id, kind, data, attempts, next_ts FROM account_jobs j
			WHERE NOT EXISTS (SELECT 1 FROM account_jobs e WHERE e.user_id = j.user_id AND e.id < j.id)
			ORDER BY next_ts, id LIMIT $1`, jobBatch)
		for rows.Next() {
			j := &job{}
			rows.Scan(&j.id, &j.userID, &j.kind, &j.data, &j.attempts, &j.nextTS)
			switch {
			case busy[j.userID]:
			case j.nextTS <= now:
				due = append(due, j)
			case next.IsZero():
				next = time.UnixMilli(j.nextTS)
			}
		}
		return rows.Close()
	})
	return due, next, err
}

// work does one job: it is deleted when it is done, and tried again later when not.
func (q *jobs) work(ctx context.Context, j *job) {
	err := q.do(ctx, j)
	if ctx.Err() != nil {
		return // it stays, and is done after the next start
	}
	wait := min(jobRetryMin<<min(j.attempts, 20), jobRetryMax)
	if err != nil {
		q.api.log.WithError(err).WithField("user", j.userID).Warn("cannot carry a change of an account into rooms; trying again later")
	}
	writeErr := q.api.db.Write(ctx, func(tx *storage.Tx) error {
		if err == nil {
			_, err := tx.Exec(`DELETE FROM account_jobs WHERE id = $1`, j.id)
			return err
		}
		_, err := tx.Exec(`UPDATE account_jobs SET attempts = attempts + 1, next_ts = $2 WHERE id = $1`,
			j.id, q.api.now().Add(wait).UnixMilli())
		return err
	})
	if writeErr != nil {
		q.api.log.WithError(writeErr).Warn("cannot write the outcome of a job of accounts")
		select { // not at once again, as long as nothing can be written
		case <-ctx.Done():
		case <-time.After(jobRetryMin):
		}
	}
	if err == nil {
		q.finished(j.id)
	}
}

var errJobKind = errors.New("job of an unknown kind")

func (q *jobs) do(ctx context.Context, j *job) error {
	switch j.kind {
	case jobLeaveAll:
		return q.api.rooms.LeaveAll(ctx, j.userID)
	case jobProfile:
		var change ProfileChange
		if err := json.Unmarshal(j.data, &change); err != nil {
			return fmt.Errorf("decode job: %w", err)
		}
		return q.api.rooms.ProfileChanged(ctx, j.userID, change)
	}
	return errJobKind
}
