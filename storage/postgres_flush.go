package storage

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/lib/pq"
	"github.com/lib/pq/pqerror"
)

// pgWriter is a connection that writes units to PostgreSQL. There are two of them, the committer's and that of the journal, which take
// turns.
type pgWriter struct {
	p    *postgres
	conn *pgConn // nil after it was lost
	*pgNode

	single bool // it was tried as one statement
	headed bool // and noted in log_head, not in log_writers

	rows rowStatement
	puts keySet
}

// pgNode is what the database knows a process by. It belongs to whoever writes.
type pgNode struct {
	node  int64 // this process's row in log_writers
	epoch int64
	batch int64 // number of the last batch tried
	owner bool  // log_head names this node, as far as is known
}

// flush commits a batch. It is tried as a whole; if that fails because of some unit, in halves, and when those are
// short, as one transaction with a savepoint around each unit. So one bad unit among a thousand costs a
// few more commits, and many bad ones not much more.
func (p *postgres) flush(batch []*Unit) {
	switch {
	case len(batch) == 0:
	case p.journal == nil:
		p.writer.flush(batch)
	case !p.journal.write(batch):
		p.journal.flush(batch)
	}
}

// fencedUnits is how many units may share a transaction with a savepoint, that is two or three round trips, each.
const fencedUnits = 32

func (w *pgWriter) flush(units []*Unit) {
	if units = refuseOrphans(units); len(units) == 0 {
		return
	}
	err := w.commit(units, false)
	if err != nil && 1 < len(units) && len(units) <= fencedUnits && !hopeless(err) {
		err = w.commit(units, true)
	}
	switch {
	case err == nil:
	case len(units) == 1 || hopeless(err):
		for _, u := range units {
			u.err = err
		}
	default:
		w.flush(units[:len(units)/2])
		w.flush(units[len(units)/2:])
	}
}

// hopeless reports whether no unit of the batch can succeed now.
func hopeless(err error) bool {
	return errors.Is(err, errUnsettled) || errors.Is(err, errUnreachable) || errors.Is(err, errTakenOver)
}

const (
	// flushTries bounds how often the same units are tried when the connection breaks or another
	// node's transaction gets in the way.
	flushTries = 5
)

var (
	// errUnsettled means that the fate of a batch could not be learnt before the DB was closed.
	errUnsettled = errors.New("storage: connection lost during commit, outcome unknown")
	// errUnreachable means that no connection could be made, so nothing was tried.
	errUnreachable = errors.New("storage: PostgreSQL cannot be reached")
	// errEpoch means that log_writers no longer has this node's row at its epoch.
	errEpoch = errors.New("storage: this node's entry in log_writers is gone")
	// errOwner means that log_head names another node by now.
	errOwner = errors.New("storage: another node advances the log")
)

// commit tries to commit the units. An error means that nothing of them was committed. Without an
// error, each unit has its own outcome. With fenced, units of rows get savepoints too.
func (w *pgWriter) commit(units []*Unit, fenced bool) error {
	var err error
	for try := range flushTries {
		if err = w.connect(); err != nil {
			return err
		}
		w.batch++
		for _, u := range units {
			u.err = nil
			u.base = 0
		}
		if err = w.attempt(units, fenced); err == nil {
			return nil
		}
		if w.conn.bad {
			w.p.opt.Log.WithError(err).Warn("storage: connection to PostgreSQL lost while committing; asking what became of it")
			done, base, settleErr := w.settle()
			if settleErr != nil {
				return errors.Join(settleErr, err)
			}
			if done {
				if w.single { // a transaction knew its bases before it committed
					spread(units, base)
				}
				return nil
			}
			continue
		}
		if errors.Is(err, errEpoch) {
			w.node, w.owner = 0, false
			continue
		}
		if errors.Is(err, errOwner) {
			w.owner = false
			continue
		}
		if !passing(err) {
			return err
		}
		time.Sleep(time.Duration(try) * 5 * time.Millisecond)
	}
	return err
}

// passing reports whether another try may succeed: a deadlock or a conflict with another node.
func passing(err error) bool {
	c := code(err)
	return c == pqerror.TRDeadlockDetected || c == pqerror.TRSerializationFailure
}

// code returns the SQLSTATE of an error, or "".
func code(err error) pqerror.Code {
	var e *pq.Error
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}

// attempt runs the units once: as one statement if they are only rows, else as one transaction.
func (w *pgWriter) attempt(units []*Unit, fenced bool) error {
	if w.single, w.headed = false, false; fenced {
		keepAll(units)
		return w.transaction(units, true, false)
	}
	supersede(units, &w.puts)
	simple := true
	for _, u := range units {
		simple = simple && u.rowsOnly()
	}
	simple = simple && w.rows.fill(units)
	headed := simple && w.rows.positions > 0
	if !simple || headed && !w.owner {
		return w.transaction(units, false, headed)
	}
	w.single, w.headed = true, headed
	guard := []any{w.batch, time.Now().UnixMilli(), w.node, w.epoch}
	if headed {
		guard = []any{w.batch, w.node}
	}
	base, err := w.insert(guard)
	if err != nil {
		if code(err) == pqerror.DivisionByZero {
			err = errors.Join(errEpoch, err)
		}
		return err
	}
	spread(units, base)
	return nil
}

// insert runs the collected row statement and returns the base, or errOwner if it did nothing.
func (w *pgWriter) insert(guard []any) (base int64, err error) {
	sql, args := w.rows.build(guard)
	rows := &Rows{sql: sql}
	if err := w.conn.query(rows, args); err != nil {
		return 0, err
	}
	ok, err := w.conn.next(rows)
	if ok {
		err = scanValues(rows.current, []any{&base})
	} else if err == nil {
		err = errOwner
	}
	if closeErr := w.conn.closeRows(rows); err == nil {
		err = closeErr
	}
	return base, err
}

// spread gives the units of a run their bases.
func spread(units []*Unit, base int64) {
	for _, u := range units {
		if u.Positions > 0 {
			u.base = base
			base += int64(u.Positions)
		}
	}
}

// transaction runs the units in order: neighbouring units of rows as one statement (unless fenceRows), the others
// each within a savepoint, so that their failures, which are normal, cost nobody else a second run. With own, it makes
// this node the one that log_head names: where nodes contend for the log, it changes hands with what it is wanted for.
func (w *pgWriter) transaction(units []*Unit, fenceRows, own bool) error {
	// Noting the batch first shares the round trip of BEGIN. Whoever locks both log_writers and log_head does it in
	// this order.
	begin := fmt.Sprintf("BEGIN; UPDATE log_writers SET batch = %d, seen = %d WHERE node = %d AND epoch = %d",
		w.batch, time.Now().UnixMilli(), w.node, w.epoch)
	if own {
		begin += fmt.Sprintf("; %s; UPDATE log_head SET node = %d, batch = 0, base = 0 WHERE id = 1 AND EXISTS (SELECT 1 FROM log_writers WHERE node = %d AND epoch = %d)",
			keepOwner, w.node, w.node, w.epoch)
	}
	noted, err := w.conn.simpleCount(begin)
	if err == nil && noted != 1 {
		err = errEpoch
	}
	open := false
	for i := 0; i < len(units) && err == nil; {
		if units[i].orphaned() {
			units[i].err = ErrAfter
			i++
			continue
		}
		run := i
		for !fenceRows && run < len(units) && units[run].rowsOnly() && !units[run].orphaned() {
			run++
		}
		if run > i {
			err = w.runRows(units[i:run])
			i = run
			continue
		}
		open, err = w.runFenced(units[i], open, len(units) == 1)
		i++
	}
	if dropped := w.conn.drain(false); err == nil {
		err = dropped // PostgreSQL would answer COMMIT with a rollback, not with an error
	}
	if err == nil {
		err = w.conn.simple("COMMIT")
		w.owner = err == nil && (own || w.owner)
	} else if !w.conn.bad {
		w.conn.rollback()
	}
	return err
}

// runRows runs neighbouring units of rows.
func (w *pgWriter) runRows(units []*Unit) error {
	if len(units) > 1 && w.rows.fill(units) {
		base, err := w.insert(nil)
		if err == nil {
			spread(units, base)
		}
		return err
	}
	for _, u := range units {
		if err := w.runSteps(u); err != nil {
			return err
		}
	}
	return nil
}

// runFenced runs one unit within a savepoint (unless it is alone). An error of the unit is its own; the returned
// error is one of the transaction. open says whether a savepoint is left from the unit before.
func (w *pgWriter) runFenced(u *Unit, open, alone bool) (nowOpen bool, err error) {
	if alone {
		return false, w.runSteps(u)
	}
	if open {
		err = w.conn.simple("RELEASE SAVEPOINT unit; SAVEPOINT unit")
	} else {
		err = w.conn.simple("SAVEPOINT unit")
	}
	if err != nil {
		return true, err
	}
	u.err = w.runSteps(u)
	if dropped := w.conn.drain(false); u.err == nil {
		u.err = dropped
	}
	if u.err == nil {
		return true, nil
	}
	if w.conn.bad || passing(u.err) {
		return true, u.err
	}
	return true, w.conn.simple("ROLLBACK TO SAVEPOINT unit")
}

// runSteps runs one unit.
func (w *pgWriter) runSteps(u *Unit) error {
	if u.rowsOnly() && w.rows.fill([]*Unit{u}) {
		base, err := w.insert(nil)
		if u.Positions > 0 {
			u.base = base
		}
		return err
	}
	if u.fn != nil {
		tx := &Tx{ctx: background, pg: w.conn, write: true}
		if err := tx.finish(tx.call(u.fn)); err != nil {
			return err
		}
		u.adopt(tx)
		return nil
	}
	if u.Positions > 0 {
		base, err := w.conn.allocate(int64(u.Positions))
		if err != nil {
			return err
		}
		u.base = base
	}
	for rest := u.steps; len(rest) > 0; {
		rows := slices.IndexFunc(rest, func(s step) bool { return s.table == nil })
		if rows < 0 {
			rows = len(rest)
		}
		n := max(rows, 1) // at least the statement
		if err := w.runSome(rest[:n], u.base); err != nil {
			return err
		}
		rest = rest[n:]
	}
	return nil
}

// runSome runs neighbouring rows of a unit that has statements as well, or one step: as one statement where that is possible.
func (w *pgWriter) runSome(steps []step, base int64) error {
	if len(steps) > 1 {
		part := &Unit{steps: make([]step, len(steps))}
		for i, s := range steps {
			s.values = absolute(s.values, base)
			part.steps[i] = s
		}
		units := []*Unit{part}
		if supersede(units, &w.puts); w.rows.fill(units) {
			_, err := w.insert(nil)
			return err
		}
	}
	for i := range steps {
		if err := w.runStep(&steps[i], base); err != nil {
			return err
		}
	}
	return nil
}

// absolute turns positions of a unit into those of the log.
func absolute(values []any, base int64) []any {
	out := slices.Clone(values)
	for i, v := range out {
		if pos, ok := v.(Pos); ok {
			out[i] = base + int64(pos)
		}
	}
	return out
}

func (w *pgWriter) runStep(st *step, base int64) error {
	sql := st.sql
	if st.table != nil {
		if sql = st.table.insertSQL; st.delete {
			sql = st.table.deleteSQL
		}
	}
	affected, err := w.conn.exec(sql, absolute(st.values, base))
	if err == nil && st.want >= 0 && affected != st.want {
		return st.unless
	}
	if err != nil {
		return fmt.Errorf("%w (in: %.120s)", err, sql)
	}
	return nil
}

// connect opens the writing connection and registers this process in log_writers, if need be.
func (w *pgWriter) connect() error {
	if w.conn != nil && !w.conn.bad && w.node != 0 {
		return nil
	}
	if err := w.dial(); err != nil {
		return errors.Join(errUnreachable, err)
	}
	if w.node != 0 {
		return nil
	}
	if w.p.lease != nil { // only another process with the lease takes the row away
		w.p.lease.giveUp()
		return errTakenOver
	}
	return w.register()
}

// dial replaces the connection.
func (w *pgWriter) dial() error {
	if w.conn != nil {
		if !w.conn.bad {
			return nil
		}
		w.conn.close()
		w.conn = nil
	}
	c, err := dialPostgres(background, w.p.writeURL)
	if err != nil {
		return fmt.Errorf("connect to PostgreSQL: %w", err)
	}
	w.conn = c
	return nil
}

// register makes this process's row in log_writers and forgets processes gone for a month.
func (w *pgWriter) register() error {
	node, err := randomID()
	if err != nil {
		return err
	}
	now := time.Now()
	if _, err := w.conn.exec(`DELETE FROM log_writers WHERE seen < $1`, []any{now.AddDate(0, -1, 0).UnixMilli()}); err != nil {
		return err
	}
	if err := w.conn.simple(`DELETE FROM log_owners WHERE node NOT IN (SELECT node FROM log_writers)`); err != nil {
		return err
	}
	_, err = w.conn.exec(`INSERT INTO log_writers (node, epoch, batch, base, seen) VALUES ($1, 1, 0, 0, $2)`, []any{node, now.UnixMilli()})
	if err != nil {
		return err
	}
	w.node, w.epoch, w.batch, w.owner = node, 1, 0, false
	return nil
}

// keepOwner writes down what log_head says of the node that it names, before it names another. It locks log_head.
const keepOwner = `INSERT INTO log_owners (node, batch, base) SELECT node, batch, base FROM log_head WHERE id = 1 AND node <> 0 FOR UPDATE
	ON CONFLICT (node) DO UPDATE SET batch = excluded.batch, base = excluded.base`

// settle learns, after the connection was lost, whether the last batch was committed.
func (w *pgWriter) settle() (committed bool, base int64, err error) {
	if w.node == 0 {
		return false, 0, nil
	}
	w.owner = false
	err = w.insist(func(*pgConn) (err error) {
		committed, base, err = w.fate()
		return err
	})
	return committed, base, err
}

// insist asks on a new connection what became of the last one's work. It tries until the database answers or the DB is closed:
// until then nobody can be told anything.
func (w *pgWriter) insist(ask func(c *pgConn) error) error {
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, 2*time.Second) {
		err := w.dial()
		if err == nil {
			if err = ask(w.conn); err == nil {
				return nil
			}
			w.conn.bad = true
		}
		select {
		case <-w.p.closing:
			return errUnsettled
		case <-time.After(wait):
		}
	}
}

// fate shuts out what may still be under way of the last batch, and looks whether it was committed. Raising the epoch
// waits for a transaction that still holds the row of log_writers and makes a statement that comes later fail; so does
// taking this node out of log_head with the other kind of statement.
func (w *pgWriter) fate() (committed bool, base int64, err error) {
	tx := &Tx{ctx: background, pg: w.conn, write: true}
	var batch, epoch int64
	found, err := tx.Get(`UPDATE log_writers SET epoch = epoch + 1 WHERE node = $1 RETURNING batch, epoch`, []any{w.node}, &batch, &epoch)
	if err != nil {
		return false, 0, err
	}
	node := w.node
	if found {
		w.epoch = epoch
	} else { // forgotten after a month of silence
		w.node = 0
	}
	if !w.headed {
		return found && batch == w.batch, 0, nil
	}
	err = w.conn.simple(fmt.Sprintf("BEGIN; %s; UPDATE log_head SET node = 0 WHERE id = 1 AND node = %d; COMMIT", keepOwner, node))
	batch = 0
	if err == nil {
		_, err = tx.Get(`SELECT batch, base FROM log_owners WHERE node = $1`, []any{node}, &batch, &base)
	}
	if err != nil {
		w.node = node
		return false, 0, err
	}
	return batch == w.batch, base, nil
}
