package storage

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// journal makes a write short that nobody else writes beside. The rows of a unit are in several tables with many indexes,
// and a statement that touches them all takes longer than everything else that a send does. So a lone unit is first written
// as one entry of log_journal, by a statement that changes one row of one table. With that it is on disk and may be
// answered. A moment later, and before anybody reads, the rows of many entries are written to their tables at once: they
// are posted.
//
// What has been answered must not fail. So only units take part that no other row can stand in the way of (Unit.Fresh); a key
// that must be new is looked for by the statement that writes the entry, which finds all there are if nothing is owed.
// Entries that a process has left behind are posted by the next one, before anything else. It is only for a process that
// has the database to itself, since others would not know of entries.
type journal struct {
	p *postgres

	// The committer's.
	turns [journalSlots]int64
	alone bool  // the last batch was of one unit
	head  int64 // where the log ends, entries included
	text  strings.Builder
	args  []any

	owes atomic.Bool // there are entries that are not posted

	mu     sync.Mutex
	owed   *debt         // not yet being posted
	busy   *debt         // being posted, by the committer or the poster
	added  int64         // entries since the start; the place of the next one is added % journalSlots
	posted int64         // how many of them are in their tables
	err    error         // of the last posting
	ended  chan struct{} // closed and made anew when a posting ends

	poster *pgWriter     // the poster's
	begun  chan struct{} // something is owed
	asked  chan struct{} // somebody waits for it, or it is much
	quit   chan struct{} // the poster shall post what is left and end
	over   chan struct{} // it has
}

// debt is what entries hold whose rows are to be posted.
type debt struct {
	entries [][]byte
	base    int64   // the position before the first
	units   []*Unit // made of the entries when they are posted; each stands on the one before
}

const (
	// journalSlots is the number of rows in log_journal, and of entries that may wait.
	journalSlots = 64
	// journalBytes bounds a unit that becomes an entry, which has to fit into a page.
	journalBytes = 5000
	// postEntries and postDelay are when entries are posted though nobody waits for it.
	postEntries = 32
	postDelay   = 250 * time.Millisecond
	// postAgain is when it is tried again after it failed.
	postAgain = time.Second
)

// newJournal begins where the log ends. All entries in the database must have been posted.
func newJournal(p *postgres, head int64) (*journal, error) {
	j := &journal{
		p: p, head: head, poster: &pgWriter{p: p, pgNode: p.writer.pgNode}, ended: make(chan struct{}),
		begun: make(chan struct{}, 1), asked: make(chan struct{}, 1), quit: make(chan struct{}), over: make(chan struct{}),
	}
	rows := (&Tx{ctx: background, pg: p.writer.conn}).Query(`SELECT slot, turn FROM log_journal`)
	for rows.Next() {
		var slot, turn int64
		if rows.Scan(&slot, &turn) == nil && 0 <= slot && slot < journalSlots {
			j.turns[slot] = turn
		}
	}
	if err := rows.Close(); err != nil {
		return nil, fmt.Errorf("read the journal: %w", err)
	}
	go j.run()
	return j, nil
}

// write tries to write a batch as an entry. If it returns false, nothing has happened; else its unit has its outcome. A unit
// between larger batches is no lone one: what follows it would have to be written before the next of them.
func (j *journal) write(batch []*Unit) bool {
	w, u, before := j.p.writer, batch[0], j.alone
	if j.alone = len(batch) == 1; !j.alone || !before || w.conn == nil || w.conn.bad || !j.takes(u) {
		return false
	}
	slot := j.added % journalSlots // only the committer adds
	entry := makeEntry(u, j.head)
	j.args = append(j.args[:0], j.turns[slot], j.turns[slot]+1, j.head, entry, slot)
	changed, err := w.conn.exec(j.statement(u), j.args)
	switch {
	case err != nil && w.conn.bad:
		w.p.opt.Log.WithError(err).Warn("storage: connection to PostgreSQL lost while committing; asking what became of it")
		written, settleErr := j.fate(slot)
		if settleErr != nil {
			u.err = errors.Join(settleErr, err)
			return true
		}
		if !written {
			return false
		}
	case err != nil || changed != 1:
		return false // it will be seen why when the rows are written to their tables
	default:
		j.turns[slot]++
	}
	u.base = j.head
	j.owe(entry)
	j.head += int64(u.Positions)
	return true
}

// takes tells whether a unit may become an entry.
func (j *journal) takes(u *Unit) bool {
	if !u.Fresh || u.Positions == 0 || u.bytes > journalBytes || !u.rowsOnly() || u.orphaned() {
		return false
	}
	news := 0
	for i := range u.steps {
		s := &u.steps[i]
		if s.delete || s.table.text {
			return false
		}
		if s.mustBeNew() {
			news++
		}
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if news > 0 && (news > 1 || j.owed != nil || j.busy != nil) {
		return false // the key may be that of a row that is not in its table yet, or of another row of the unit
	}
	return j.added-j.posted < journalSlots
}

// mustBeNew tells that the row fails if its key, which is declared, exists.
func (s *step) mustBeNew() bool { return s.table.mode == Insert && len(s.table.keys) > 0 }

// statement returns the statement that writes an entry, unless a key exists that must be new, and adds the keys to the
// arguments.
func (j *journal) statement(u *Unit) string {
	j.text.Reset()
	j.text.WriteString(`UPDATE log_journal SET turn = $2, base = $3, entry = $4 WHERE slot = $5 AND turn = $1`)
	for i := range u.steps {
		s := &u.steps[i]
		if !s.mustBeNew() {
			continue
		}
		j.text.WriteString(" AND NOT EXISTS (SELECT 1 FROM " + s.table.name)
		and := " WHERE "
		for _, k := range s.table.keys {
			j.args = append(j.args, s.values[k])
			j.text.WriteString(and + s.table.columns[k].name + " = $" + strconv.Itoa(len(j.args)))
			and = " AND "
		}
		j.text.WriteString(")")
	}
	return j.text.String()
}

// fate learns, after the connection was lost, whether the entry at j.head was written to the slot. Changing the row waits for
// a statement under way, and makes one that comes later fail.
func (j *journal) fate(slot int64) (written bool, err error) {
	err = j.p.writer.insist(func(c *pgConn) error {
		var turn, base int64
		found, err := (&Tx{ctx: background, pg: c, write: true}).Get(
			`UPDATE log_journal SET turn = turn + 1 WHERE slot = $1 RETURNING turn, base`, []any{slot}, &turn, &base)
		if err == nil && !found {
			err = errors.New("storage: a row of log_journal is gone")
		}
		j.turns[slot], written = turn, base == j.head
		return err
	})
	return written, err
}

// owe notes the entry that was written at j.head.
func (j *journal) owe(entry []byte) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.added++
	if j.owed == nil {
		j.owed = &debt{base: j.head}
		signal(j.begun)
	}
	j.owed.entries = append(j.owed.entries, entry)
	j.owes.Store(true)
	if len(j.owed.entries) >= postEntries {
		signal(j.asked)
	}
}

// read makes the units of the entries.
func (d *debt) read() error {
	d.units = make([]*Unit, len(d.entries))
	for i, entry := range d.entries {
		u, err := readEntry(entry)
		if err != nil {
			return err
		}
		if i > 0 {
			u.After = d.units[i-1]
		}
		d.units[i] = u
	}
	return nil
}

// pay drops what has been posted, and returns how many entries that were and why the next was not.
func (d *debt) pay() (posted int, err error) {
	for _, u := range d.units {
		if err = u.err; err != nil {
			break
		}
		if u.base != d.base {
			panic(fmt.Sprintf("storage: an entry of the journal for position %d was written at %d", d.base, u.base))
		}
		d.base += int64(u.Positions)
		posted++
	}
	d.entries, d.units = d.entries[posted:], nil
	return posted, err
}

// signal wakes who waits for c, now or the next time.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// take waits until nobody posts, and returns what is owed, or nil. Whoever takes it posts its units and calls settle; until then
// nobody else advances the log.
func (j *journal) take() *debt {
	j.mu.Lock()
	defer j.mu.Unlock()
	for j.busy != nil {
		ended := j.ended
		j.mu.Unlock()
		<-ended
		j.mu.Lock()
	}
	if j.owed == nil {
		return nil
	}
	if err := j.owed.read(); err != nil {
		panic(err) // the next process could not read it either
	}
	j.busy, j.owed = j.owed, nil
	return j.busy
}

// settle ends a posting. Its outcome, which is in the units, is that of the first one that failed.
func (j *journal) settle(d *debt) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	posted, err := d.pay()
	j.posted += int64(posted)
	if err != nil {
		if j.owed != nil {
			d.entries = append(d.entries, j.owed.entries...)
		}
		j.owed = d
		if j.err == nil {
			j.p.opt.Log.WithError(err).WithField("entries", len(d.entries)).Error("storage: what is in the journal cannot be written to its tables; reads wait for it, and it is tried again")
		}
	}
	j.busy, j.err = nil, err
	j.owes.Store(j.owed != nil)
	close(j.ended)
	j.ended = make(chan struct{})
	return err
}

// wait returns once the entries that are there have been posted, so that a read finds their rows.
func (j *journal) wait(ctx context.Context) error {
	if j == nil || !j.owes.Load() {
		return nil
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	for last := j.added; j.posted < last; {
		ended := j.ended
		j.mu.Unlock()
		signal(j.asked)
		var err error
		select {
		case <-ended:
		case <-ctx.Done():
			err = ctx.Err()
		case <-j.p.closing:
			err = ErrClosed
		}
		j.mu.Lock()
		if err == nil && j.posted < last {
			err = j.err
		}
		if err != nil {
			return fmt.Errorf("wait for the journal: %w", err)
		}
	}
	return nil
}

// run is the poster.
func (j *journal) run() {
	defer close(j.over)
	timer := time.NewTimer(postDelay)
	for end := false; !end; {
		select {
		case <-j.begun:
			timer.Reset(postDelay)
			continue
		case <-timer.C:
		case <-j.asked:
		case <-j.quit:
			end = true
		}
		if d := j.take(); d != nil {
			j.poster.flush(d.units)
			if j.settle(d) != nil {
				timer.Reset(postAgain)
			}
		}
	}
	if j.poster.conn != nil {
		j.poster.conn.close()
	}
}

// flush writes a batch to its tables, and what is owed before it, if possible in the same transaction.
func (j *journal) flush(batch []*Unit) {
	w := j.p.writer
	d := j.take()
	if d == nil {
		w.flush(batch)
		j.advance(batch)
		return
	}
	batch = refuseOrphans(batch)
	err := w.commit(append(slices.Clip(d.units), batch...), false)
	switch {
	case err == nil:
		j.advance(batch)
	case hopeless(err):
		for _, u := range d.units {
			u.err = err
		}
	default:
		w.flush(d.units) // whatever stands in the way of the batch
	}
	owed := j.settle(d)
	switch {
	case err == nil:
	case owed == nil:
		w.flush(batch)
		j.advance(batch)
	default:
		for _, u := range batch {
			u.err = owed
		}
	}
}

// advance notes the positions that a batch has taken.
func (j *journal) advance(batch []*Unit) {
	for _, u := range batch {
		if u.err == nil && u.Positions > 0 {
			j.head = max(j.head, u.base+int64(u.Positions))
		}
	}
}

// close posts what is left, if that is soon done; if not, it is for the next process.
func (j *journal) close() {
	if j == nil {
		return
	}
	close(j.quit)
	select {
	case <-j.over:
	case <-time.After(closePatience):
	}
}

// postLeftovers posts what a process that did not end by itself has left in the journal. It comes before migrations, which may
// change the tables that the entries are for.
func (p *postgres) postLeftovers() error {
	c := p.writer.conn
	var found bool
	if _, err := (&Tx{pg: c, write: true}).Get(`SELECT to_regclass('log_journal') IS NOT NULL`, nil, &found); err != nil || !found {
		return err
	}
	if err := p.fence(); err != nil {
		return err
	}
	err := c.simple(fmt.Sprintf("BEGIN; SELECT pg_advisory_xact_lock(%d)", int64(schemaLock)))
	if err == nil {
		err = p.postLeft()
	}
	if err == nil {
		return c.simple("COMMIT")
	}
	if !c.bad {
		c.rollback()
	}
	return fmt.Errorf("write what is left in the journal: %w", err)
}

// postLeft posts the entries that the log has not come to.
func (p *postgres) postLeft() error {
	rows := (&Tx{ctx: background, pg: p.writer.conn, write: true}).Query(
		`SELECT j.base, j.entry FROM log_journal j, log_head h WHERE h.id = 1 AND j.base >= h.head ORDER BY j.base`)
	d := &debt{}
	for rows.Next() {
		var base int64
		var entry []byte
		rows.Scan(&base, &entry)
		if len(d.entries) == 0 {
			d.base = base
		}
		d.entries = append(d.entries, entry)
	}
	if err := rows.Close(); err != nil || len(d.entries) == 0 {
		return err
	}
	if err := d.read(); err != nil {
		return err
	}
	for _, u := range d.units {
		if err := p.writer.runSteps(u); err != nil {
			return err
		}
	}
	posted, err := d.pay()
	p.opt.Log.WithField("entries", posted).Info("storage: wrote what the last process has left in the journal")
	return err
}
