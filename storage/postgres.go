package storage

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"sync"
	"time"

	"github.com/lib/pq"
)

// postgres is the PostgreSQL engine: one writing connection used by the committer alone, and a pool
// of reading connections that open on demand.
type postgres struct {
	writeURL, readURL *pgTarget
	opt               Options

	writer  *pgWriter     // owned by the committer
	journal *journal      // nil: other processes may have the database open
	lease   *lease        // nil: other processes may have the database open
	closing chan struct{} // closed when nobody must wait for the server any more
	closed  sync.Once     // closes it

	slots chan struct{}
	mu    sync.Mutex
	free  []*pgConn
}

func openPostgres(ctx context.Context, dsn string, opt Options) (*postgres, error) {
	p := &postgres{opt: opt, slots: make(chan struct{}, opt.Readers), closing: make(chan struct{})}
	p.writer = &pgWriter{p: p, pgNode: &pgNode{}}
	limit := fmt.Sprint(opt.ReadTimeout.Milliseconds())
	var err error
	p.writeURL, err = target(dsn, map[string]string{
		"synchronous_commit":                  "on",
		"statement_timeout":                   limit,
		"idle_in_transaction_session_timeout": limit,
	})
	if err == nil {
		p.readURL, err = target(dsn, map[string]string{
			"default_transaction_isolation":       "repeatable read",
			"default_transaction_read_only":       "on",
			"statement_timeout":                   limit,
			"idle_in_transaction_session_timeout": limit,
		})
	}
	if err != nil {
		return nil, err
	}
	if opt.Exclusive {
		if p.lease, err = newLease(p, dsn); err == nil {
			err = p.lease.take(ctx)
		}
	}
	if err == nil {
		p.writer.conn, err = dialPostgres(ctx, p.writeURL)
	}
	if err != nil {
		return nil, errors.Join(err, p.close())
	}
	return p, nil
}

// pgTarget is what to connect to, and the statement that makes the session what it has to be.
type pgTarget struct {
	*pq.Connector
	settings string
}

// target is a URL with the settings of a session. They are made by a statement, because a connection pooler such as
// PgBouncer does not take them from the start of a connection.
func target(dsn string, settings map[string]string) (*pgTarget, error) {
	u, err := url.Parse(dsn)
	if err != nil {
		return nil, errors.New("malformed URL") // the original error would show the password
	}
	q := u.Query()
	q.Set("binary_parameters", "yes")
	if q.Get("connect_timeout") == "" {
		q.Set("connect_timeout", "10")
	}
	if q.Get("application_name") == "" {
		q.Set("application_name", "myelin")
	}
	u.RawQuery = q.Encode()
	t := &pgTarget{}
	for k, v := range settings {
		t.settings += fmt.Sprintf("SET %s = '%s'; ", k, v)
	}
	t.Connector, err = pq.NewConnector(u.String())
	return t, err
}

func (p *postgres) acquire(ctx context.Context) (*pgConn, error) {
	select {
	case p.slots <- struct{}{}:
	default:
		select {
		case p.slots <- struct{}{}:
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-p.closing:
			return nil, ErrClosed
		}
	}
	p.mu.Lock()
	if n := len(p.free); n > 0 {
		c := p.free[n-1]
		p.free = p.free[:n-1]
		p.mu.Unlock()
		return c, nil
	}
	p.mu.Unlock()
	c, err := dialPostgres(ctx, p.readURL)
	if err != nil {
		<-p.slots
		return nil, err
	}
	return c, nil
}

func (p *postgres) release(c *pgConn) {
	if c.bad {
		c.close()
	} else {
		p.mu.Lock()
		p.free = append(p.free, c)
		p.mu.Unlock()
	}
	<-p.slots
}

// beginRead starts a transaction; a connection found dead (the server was restarted) is replaced,
// the others in the pool with it.
func (p *postgres) beginRead(ctx context.Context) (*Tx, error) {
	if err := p.journal.wait(ctx); err != nil {
		return nil, err
	}
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		c, err := p.acquire(ctx)
		if err != nil {
			return nil, err
		}
		fresh := c.uses == 0
		if err = c.simple("BEGIN"); err == nil {
			return &Tx{ctx: ctx, pg: c}, nil
		}
		c.bad = true
		p.release(c)
		if fresh {
			return nil, fmt.Errorf("begin read: %w", err)
		}
	}
}

func (p *postgres) endRead(tx *Tx) {
	tx.over = true
	c := tx.pg
	_ = c.drain(false) // nothing was lost that fn wanted to read
	if c.bad {
		p.release(c)
		return
	}
	// Nobody needs the answer to COMMIT: the caller does not wait for the round trip.
	go func() {
		if err := c.simple("COMMIT"); err != nil {
			c.bad = true
		}
		p.release(c)
	}()
}

func (p *postgres) readOne(ctx context.Context, fn func(tx *Tx) error) error {
	if err := p.journal.wait(ctx); err != nil {
		return err
	}
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		c, err := p.acquire(ctx)
		if err != nil {
			return err
		}
		fresh := c.uses == 0
		tx := &Tx{ctx: ctx, pg: c}
		err = fn(tx)
		tx.over = true
		_ = c.drain(false) // nothing was lost that fn wanted to read
		bad := c.bad
		p.release(c)
		if err == nil || !bad || fresh {
			return err
		}
	}
}

const schemaLock = 0x6d79656c696e0001

func (p *postgres) prepare(schemas []Schema) (head, generation int64, err error) {
	if p.opt.Existing {
		if found, err := p.writer.conn.hasTables(); err != nil || !found {
			return 0, 0, errors.Join(err, ErrMissing)
		}
	}
	if err := p.postLeftovers(); err != nil {
		return 0, 0, err
	}
	if err := p.migrate(schemas); err != nil {
		return 0, 0, err
	}
	return p.join()
}

// hasTables tells whether the database has been migrated before.
func (c *pgConn) hasTables() (found bool, err error) {
	_, err = (&Tx{pg: c, write: true}).Get(`SELECT to_regclass('schema_versions') IS NOT NULL`, nil, &found)
	return found, err
}

// migrate applies what is pending in one transaction, which may take any time. Of processes that start at the same time,
// one does it and the others wait.
func (p *postgres) migrate(schemas []Schema) error {
	c := p.writer.conn
	err := c.simple(fmt.Sprintf(`BEGIN; SET LOCAL statement_timeout = 0; SELECT pg_advisory_xact_lock(%d);
		CREATE TABLE IF NOT EXISTS schema_versions (feature BYTEA PRIMARY KEY, version BIGINT NOT NULL)`, int64(schemaLock)))
	var steps []migration
	if err == nil {
		steps, err = pendingSteps(&Tx{pg: c, write: true}, schemas)
	}
	if err == nil {
		err = c.applyMigrations(steps)
	}
	if err == nil {
		return c.simple("COMMIT")
	}
	if !c.bad {
		c.rollback()
	}
	return err
}

// applyMigrations runs steps, one a round trip.
func (c *pgConn) applyMigrations(steps []migration) error {
	for _, step := range steps {
		err := c.simple(translate(step.sql, PostgreSQL))
		if err == nil {
			_, err = c.exec(noteVersion, []any{step.feature, step.version})
		}
		if err != nil {
			return step.wrap(err)
		}
	}
	return nil
}

// join makes this process one that writes the log.
func (p *postgres) join() (head, generation int64, err error) {
	if err := p.fence(); err != nil {
		return 0, 0, err
	}
	head, generation, err = logHead(&Tx{pg: p.writer.conn, write: true})
	if err == nil {
		err = p.writer.register()
	}
	if err == nil && p.lease != nil {
		p.lease.ended = make(chan struct{})
		go p.lease.keep(p.writer.node)
		p.journal, err = newJournal(p, head)
	}
	return head, generation, err
}

func (p *postgres) lost() <-chan struct{} {
	if p.lease == nil {
		return nil
	}
	return p.lease.lost
}

// fence waits for what a process that was killed left under way, and makes it fail if it comes later, so
// that the head read next does not move by a dead hand. A living node notices and registers anew; with the lease, nobody
// else may live, and whoever finds its row gone ends.
func (p *postgres) fence() error {
	c := p.writer.conn
	shutOut := "UPDATE log_writers SET epoch = epoch + 1"
	if p.lease != nil {
		shutOut = "DELETE FROM log_writers"
	}
	err := c.simple(fmt.Sprintf(`BEGIN; SET LOCAL statement_timeout = %d; SELECT pg_advisory_xact_lock(%d);
		%s; %s; UPDATE log_head SET node = 0 WHERE id = 1; UPDATE log_journal SET turn = turn + 1; COMMIT`,
		3*p.opt.ReadTimeout.Milliseconds(), int64(schemaLock), shutOut, keepOwner))
	if err != nil && !c.bad {
		c.rollback()
	}
	return err
}

func (p *postgres) maintain(bool) {}

func (p *postgres) quietDelay() time.Duration { return 0 }

func (p *postgres) led() bool { return true }

func (p *postgres) giveUp() { p.closed.Do(func() { close(p.closing) }) }

func (p *postgres) close() error {
	// Take all slots: reads in progress, and the COMMITs of reads that have returned, end first.
	deadline := time.After(closePatience)
	for range cap(p.slots) {
		select {
		case p.slots <- struct{}{}:
			continue
		case <-deadline:
		}
		break
	}
	p.journal.close()
	p.giveUp()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.free {
		c.close()
	}
	p.free = nil
	if c := p.writer.conn; c != nil {
		if !c.bad && p.writer.node != 0 {
			// A row that stays is forgotten after a month, like that of a process that was killed.
			_, _ = c.exec(`DELETE FROM log_writers WHERE node = $1`, []any{p.writer.node})
		}
		c.close()
	}
	if p.lease != nil {
		p.lease.close()
	}
	return nil
}
