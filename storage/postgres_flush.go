package storage

import (
	"fmt"
)

// flush commits each unit in a transaction of its own.
func (p *postgres) flush(batch []*Unit) {
	for _, u := range batch {
		u.err = p.runUnit(u)
	}
}

func (p *postgres) runUnit(u *Unit) error {
	if p.writer == nil || p.writer.bad {
		c, err := dialPostgres(background, p.writeURL)
		if err != nil {
			return err
		}
		p.writer = c
	}
	c := p.writer
	if err := c.simple("BEGIN"); err != nil {
		return err
	}
	err := p.runSteps(u)
	c.drain(false)
	if err != nil {
		c.simple("ROLLBACK")
		return err
	}
	return c.simple("COMMIT")
}

func (p *postgres) runSteps(u *Unit) error {
	if u.fn != nil {
		tx := &Tx{ctx: background, pg: p.writer, write: true}
		if err := tx.finish(tx.call(u.fn)); err != nil {
			return err
		}
		u.Positions = 0
		if tx.position != 0 {
			u.Positions, u.base = 1, tx.base
		}
		u.Notices = tx.notices
		return nil
	}
	if u.Positions > 0 {
		base, err := p.writer.allocate(int64(u.Positions))
		if err != nil {
			return err
		}
		u.base = base
	}
	for _, st := range u.steps {
		if err := p.runStep(st, u.base); err != nil {
			return err
		}
	}
	return nil
}

func (p *postgres) runStep(st step, base int64) error {
	sql := st.sql
	if st.table != nil {
		if sql = st.table.insertSQL; st.delete {
			sql = st.table.deleteSQL
		}
	}
	args := make([]any, len(st.values))
	for i, v := range st.values {
		if pos, ok := v.(Pos); ok {
			v = base + int64(pos)
		}
		args[i] = v
	}
	affected, err := p.writer.exec(sql, args)
	if err == nil && st.want >= 0 && affected != st.want {
		return st.unless
	}
	if err != nil {
		return fmt.Errorf("%w (in: %.120s)", err, sql)
	}
	return nil
}
