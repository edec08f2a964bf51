package storage

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// lease keeps other processes out of a PostgreSQL database, by an advisory lock of a session that lives as long as the
// DB. When the session breaks, writing goes on while the lease is taken again, for what is at stake is guarded by
// log_writers: a process that gets the lease in between deletes all its rows, and with that the first cannot write
// any more, notices, and must end.
type lease struct {
	p    *postgres
	url  *pgTarget
	conn *pgConn // nil after it was lost

	lost  chan struct{} // closed when another process has taken the database over
	once  sync.Once     // closes it
	ended chan struct{} // closed when keep ends; nil: it was not begun
}

const (
	// leaseLock is the first half of the lock's key; the other is the schema that the tables are in.
	leaseLock = 0x6d79656c
	// leasePatience is how long Open waits for the lease: a process that was killed holds it until PostgreSQL notices.
	leasePatience = 10 * time.Second
	// leasePulse is how often it is looked at.
	leasePulse = 2 * time.Second
)

// errTakenOver means that another process has had the database to itself since this one opened it.
var errTakenOver = errors.New("storage: another server has taken the database over")

func newLease(p *postgres, dsn string) (*lease, error) {
	u, err := target(dsn, map[string]string{
		"statement_timeout": fmt.Sprint(leasePatience.Milliseconds()),
		// A machine that vanished must not hold the lease for the hours that are TCP's default.
		"tcp_keepalives_idle": "10", "tcp_keepalives_interval": "5", "tcp_keepalives_count": "3",
	})
	return &lease{p: p, url: u, lost: make(chan struct{})}, err
}

// errShared means that the sessions of two connections are not two.
var errShared = errors.New("storage: the connection pooler in front of PostgreSQL gives a connection one session after the other, so that nothing " +
	"would keep a second server out; connect to PostgreSQL itself, or have the pooler keep a session for each connection (PgBouncer: pool_mode = session)")

// checkOwn fails with errShared if a connection has no session of its own. A pooler that hands sessions out by transactions
// gives those that are free in turn, or the one that was used last: either the first connection gets two, or the second gets
// that of the first.
func (l *lease) checkOwn(ctx context.Context) error {
	var pids []int64
	ask := func(c *pgConn) error {
		var pid int64
		// A text of its own each time, so that it is not prepared: a pooler may not know it the next time.
		_, err := (&Tx{ctx: background, pg: c}).Get(fmt.Sprintf(`SELECT pg_backend_pid()::bigint AS ask%d`, len(pids)), nil, &pid)
		pids = append(pids, pid)
		return err
	}
	other, err := dialPostgres(ctx, l.url)
	if err != nil {
		return err
	}
	defer other.close()
	err = errors.Join(ask(l.conn), ask(l.conn), other.simple("BEGIN"), ask(other), ask(l.conn))
	if err == nil && (pids[0] != pids[1] || pids[0] == pids[2] || pids[0] != pids[3]) {
		return errShared
	}
	return err
}

// take waits for the lease. It fails with ErrLocked if another process keeps it.
func (l *lease) take(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeout(ctx, leasePatience)
	defer cancel()
	if l.conn, err = dialPostgres(ctx, l.url); err != nil {
		return err
	}
	if err := l.checkOwn(ctx); err != nil {
		return err
	}
	told := false
	for wait := 20 * time.Millisecond; ; wait = min(2*wait, 500*time.Millisecond) {
		if ok, err := l.try(ctx); err != nil || ok {
			return err
		}
		if !told && wait > 100*time.Millisecond {
			l.p.opt.Log.Warn("storage: another server holds the database; waiting for it to end")
			told = true
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: a server connected from %s", ErrLocked, l.holder())
		case <-time.After(wait):
		}
	}
}

// try takes the lease if it is free.
func (l *lease) try(ctx context.Context) (ok bool, err error) {
	if l.conn == nil {
		if l.conn, err = dialPostgres(ctx, l.url); err != nil {
			return false, err
		}
	}
	_, err = l.tx().Get(`SELECT pg_try_advisory_lock($1::int, (SELECT oid FROM pg_namespace WHERE nspname = current_schema())::int)`,
		[]any{leaseLock}, &ok)
	return ok, err
}

func (l *lease) tx() *Tx { return &Tx{ctx: background, pg: l.conn} }

// holder says who has the lease, as far as PostgreSQL tells.
func (l *lease) holder() string {
	who := "elsewhere"
	_, _ = l.tx().Get(`SELECT convert_to(coalesce(host(a.client_addr), 'this machine') || ' since ' || a.backend_start::timestamptz(0), 'UTF8')
		FROM pg_locks l JOIN pg_stat_activity a USING (pid)
		WHERE l.locktype = 'advisory' AND l.granted AND l.classid = $1::int AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())`,
		[]any{leaseLock}, &who)
	return who
}

// keep holds on to the lease until the DB is closed or another process has taken it over. node is this process's row in
// log_writers.
func (l *lease) keep(node int64) {
	defer close(l.ended)
	for held := true; ; {
		select {
		case <-l.p.closing:
			return
		case <-l.lost:
			return
		case <-time.After(leasePulse):
		}
		held = l.check(node, held)
	}
}

// check takes the lease again if it was lost, and looks whether another process has had it. Without a connection, there is
// nothing to do but to try again.
func (l *lease) check(node int64, held bool) (nowHeld bool) {
	var err error
	if !held {
		held, err = l.try(background)
	}
	var mine bool
	if err == nil {
		mine, err = l.tx().Get(`SELECT 1 FROM log_writers WHERE node = $1`, []any{node}, nil)
	}
	switch {
	case err != nil:
		l.p.opt.Log.WithError(err).Warn("storage: the connection that keeps other servers out of the database is lost; connecting again")
		l.drop()
		return false
	case !mine:
		l.giveUp()
	}
	return held
}

// giveUp tells that another process has taken the database over.
func (l *lease) giveUp() { l.once.Do(func() { close(l.lost) }) }

func (l *lease) drop() {
	if l.conn != nil {
		l.conn.close()
		l.conn = nil
	}
}

// close gives the lease back, after the channel closing has been closed.
func (l *lease) close() {
	if l.ended != nil {
		select {
		case <-l.ended:
		case <-time.After(closePatience):
			return // PostgreSQL does not answer; the end of the process closes the connection
		}
	}
	if l.conn != nil {
		// Without waiting for PostgreSQL to notice that the connection was closed, the next process can begin.
		_ = l.conn.simple("SELECT pg_advisory_unlock_all()")
	}
	l.drop()
}
