package ephemeral

import (
	"context"
	"fmt"
	"sync"

	"github.com/myelin-im/myelin/internal/cache"
	"github.com/myelin-im/myelin/internal/memo"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/storage"
)

// Kind is what a receipt is.
type Kind int64

// The kinds, as stored.
const (
	// Read is m.read, which all members of the room see.
	Read Kind = iota + 1
	// Private is m.read.private, which only its user sees.
	Private
	// FullyRead is the read marker; it is account data and not shown as a receipt.
	FullyRead
)

// Unthreaded and Main are the threads of receipts that belong to no single thread root.
const (
	Unthreaded = ""
	Main       = "main"
)

// Receipt tells how far a user has read a room, or one thread of it.
type Receipt struct {
	// User is whose receipt it is.
	User string
	// Kind is Read or Private.
	Kind Kind
	// Thread is Unthreaded, Main, or the event ID of a thread's root.
	Thread string
	// EventID is the last event that was read.
	EventID string
	// At is that event's place in the room's history; zero, before all others, while the event is not known.
	At roomserver.HistoryToken
	// TS is when the server got the receipt, in milliseconds.
	TS int64
	// Pos is the log position at which it came to be this one.
	Pos int64
}

// position is the log position up to which the receipt reads. An event that was backfilled has none; it stands before
// that of its anchor.
func (r *Receipt) position() int64 {
	if r.At.Sub < 0 {
		return r.At.Anchor - 1
	}
	return r.At.Anchor
}

// same tells whether two receipts are of the same user, kind and thread, so that one replaces the other.
func (r *Receipt) same(o *Receipt) bool {
	return r.User == o.User && r.Kind == o.Kind && r.Thread == o.Thread
}

const receiptColumns = `user_id, kind, thread, event_id, anchor, sub, ts, pos`

// readReceipts runs a query of receiptColumns.
func readReceipts(tx *storage.Tx, sql string, args ...any) (list []Receipt, err error) {
	rows := tx.Query(sql, args...)
	var r Receipt
	var kind int64
	for rows.Next() {
		rows.Scan(&r.User, &kind, &r.Thread, &r.EventID, &r.At.Anchor, &r.At.Sub, &r.TS, &r.Pos)
		r.Kind = Kind(kind)
		list = append(list, r)
	}
	return list, rows.Close()
}

// putReceipt stores a receipt in a Write, unless that would move it back, and tells whether it moved.
func putReceipt(tx *storage.Tx, room int64, r *Receipt) (moved bool, err error) {
	pos, err := tx.Position()
	if err != nil {
		return false, fmt.Errorf("take a position: %w", err)
	}
	n, err := tx.Exec(`INSERT INTO receipts (room, user_id, kind, thread, event_id, anchor, sub, ts, pos)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
		ON CONFLICT (room, user_id, kind, thread) DO UPDATE SET event_id = excluded.event_id,
			anchor = excluded.anchor, sub = excluded.sub, ts = excluded.ts, pos = excluded.pos
		WHERE (receipts.anchor, receipts.sub) < (excluded.anchor, excluded.sub)`,
		room, r.User, int64(r.Kind), r.Thread, r.EventID, r.At.Anchor, r.At.Sub, r.TS, pos)
	if err != nil {
		return false, fmt.Errorf("store receipt: %w", err)
	}
	if n > 0 {
		switch r.Kind {
		case Read:
			tx.Notice(storage.Notice{Kind: storage.Receipt, Room: room, User: r.User})
		case Private:
			tx.Notice(storage.Notice{Kind: storage.PrivateReceipt, Room: room, User: r.User})
		}
	}
	return n > 0, nil
}

const (
	// keepReceipts is how many of a room's newest receipts are at hand.
	keepReceipts = 128
	// maxShown bounds the receipts of others that a client is shown of a room it does not know yet: the newest ones.
	maxShown = 1000
	// maxReceiptLogs bounds the rooms whose receipts are in memory, maxOwnReceipts the users and rooms.
	maxReceiptLogs = 4000
	maxOwnReceipts = 100_000
)

// receiptStore reads receipts through memory.
type receiptStore struct {
	db    *storage.DB
	start int64 // the log's head when it began to follow the log
	own   *memo.Memo[member, []Receipt]
	logs  *cache.Cache[int64, *receiptLog]

	mu   sync.RWMutex
	last map[int64]int64 // by room, the position of the last receipt since start; guarded by mu
}

// member is a user in a room.
type member struct {
	room int64
	user string
}

func newReceiptStore(db *storage.DB) *receiptStore {
	s := &receiptStore{db: db, start: db.Head(), last: map[int64]int64{}}
	s.own = memo.New(maxOwnReceipts, s.readOwn)
	s.logs = cache.New[int64, *receiptLog](maxReceiptLogs)
	return s
}

// committed takes note of receipts.
func (s *receiptStore) committed(batch []storage.Notice) {
	for i := range batch {
		n := &batch[i]
		if n.Kind != storage.Receipt && n.Kind != storage.PrivateReceipt {
			continue
		}
		s.mu.Lock()
		s.last[n.Room] = n.Pos
		s.mu.Unlock()
		s.own.Changed(member{n.Room, n.User})
	}
}

// newest returns the position of the room's last receipt since start, 0 if there was none.
func (s *receiptStore) newest(room int64) int64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.last[room]
}

// readOwn reads a user's own receipts of a room, from memory if that has all of the room's.
func (s *receiptStore) readOwn(ctx context.Context, m member) (list []Receipt, err error) {
	newest := s.newest(m.room)
	if log, ok := s.logs.Get(m.room); ok {
		if list, all := log.own(m.user, newest); all {
			return list, nil
		}
	}
	err = s.db.Read(ctx, func(tx *storage.Tx) (err error) {
		list, err = readReceipts(tx, `SELECT `+receiptColumns+` FROM receipts WHERE room = $1 AND user_id = $2`, m.room, m.user)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("receipts of %s: %w", m.user, err)
	}
	return list, nil
}

// ReadUpTo returns the log position up to which a user has read a room, by the later of the public and the
// private receipt of one thread (Unthreaded, Main, or the ID of a root); 0 if there is none. It knows all
// receipts up to the log's head.
func (a *API) ReadUpTo(ctx context.Context, room int64, user, thread string) (int64, error) {
	list, err := a.receipts.own.Get(ctx, member{room, user})
	var upTo int64
	for i := range list {
		if r := &list[i]; r.Thread == thread && r.Kind != FullyRead {
			upTo = max(upTo, r.position())
		}
	}
	return upTo, err
}

// Receipts returns the receipts of a room that a user may see and that moved at positions in (since, upTo], by position.
// From the beginning (since 0) these are all that there are: of other users, the newest ones if there are very many.
func (a *API) Receipts(ctx context.Context, room int64, user string, since, upTo int64) ([]Receipt, error) {
	s := a.receipts
	newest := s.newest(room)
	if since >= s.start && newest <= since {
		return nil, nil
	}
	list, covered, err := s.log(room).between(ctx, s.db, room, user, since, upTo, newest)
	if err == nil && !covered {
		list, err = s.old(ctx, room, user, since, upTo)
	}
	if err != nil {
		return nil, fmt.Errorf("receipts of room %d: %w", room, err)
	}
	return list, nil
}

// log returns the log of a room, which may have to be loaded.
func (s *receiptStore) log(room int64) *receiptLog {
	log, ok := s.logs.Get(room)
	if !ok {
		log = s.logs.GetOrPut(room, &receiptLog{}, 1)
	}
	return log
}

// old reads from the database what memory does not reach back to.
func (s *receiptStore) old(ctx context.Context, room int64, user string, since, upTo int64) (list []Receipt, err error) {
	err = s.db.Read(ctx, func(tx *storage.Tx) (err error) {
		list, err = readReceipts(tx, `SELECT * FROM (
				SELECT `+receiptColumns+` FROM receipts WHERE room = $1 AND pos > $2 AND pos <= $3 AND kind = $4 AND user_id <> $5
				ORDER BY pos DESC LIMIT $6) AS others
			UNION ALL
			SELECT `+receiptColumns+` FROM receipts WHERE room = $1 AND user_id = $5 AND pos > $2 AND pos <= $3 AND kind <> $7
			ORDER BY pos, kind`,
			room, since, upTo, int64(Read), user, int64(maxShown), int64(FullyRead))
		return err
	})
	return list, err
}

// receiptLog is the newest receipts of one room.
type receiptLog struct {
	mu     sync.Mutex
	loaded bool
	// list holds all receipts with positions in (from, upTo], by position, also private ones and, as far as they
	// were read with others, read markers.
	from, upTo int64
	list       []Receipt
}

// between returns what a user may see in (since, upTo], and whether the log reaches back that far. newest is the
// position of the room's last receipt, as far as it came since the process started.
func (l *receiptLog) between(ctx context.Context, db *storage.DB, room int64, user string, since, upTo, newest int64) (out []Receipt, covered bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.loaded || l.upTo < min(upTo, newest) {
		if err := l.extend(ctx, db, room, upTo); err != nil {
			return nil, false, err
		}
	}
	if since < l.from {
		return nil, false, nil
	}
	for i := range l.list {
		if r := &l.list[i]; r.Pos > since && r.Pos <= upTo && (r.Kind == Read || r.User == user && r.Kind == Private) {
			out = append(out, *r)
		}
	}
	return out, true, nil
}

// extend reads what is new up to a position.
func (l *receiptLog) extend(ctx context.Context, db *storage.DB, room, upTo int64) error {
	var fresh []Receipt
	err := db.Read(ctx, func(tx *storage.Tx) (err error) {
		after := int64(0)
		if l.loaded {
			after = l.upTo
		}
		fresh, err = readReceipts(tx, `SELECT * FROM (
			SELECT `+receiptColumns+` FROM receipts WHERE room = $1 AND pos > $2 AND pos <= $3
			ORDER BY pos DESC LIMIT $4) AS newest ORDER BY pos, kind`, room, after, upTo, int64(keepReceipts+1))
		return err
	})
	if err == nil {
		l.extended(fresh, upTo)
	}
	return err
}

// extended takes in what is new up to a position, of which there is more if it is more than the log keeps.
func (l *receiptLog) extended(fresh []Receipt, upTo int64) {
	if len(fresh) > keepReceipts {
		l.list, l.from = nil, fresh[0].Pos
		fresh = fresh[1:]
	}
	l.add(fresh)
	l.loaded, l.upTo = true, upTo
}

// own returns the receipts of a user, if the log has all of the room's up to a position.
func (l *receiptLog) own(user string, upTo int64) (list []Receipt, all bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.loaded || l.from > 0 || l.upTo < upTo {
		return nil, false
	}
	for i := range l.list {
		if l.list[i].User == user {
			list = append(list, l.list[i])
		}
	}
	return list, true
}

// add appends receipts, which replace what they moved from, and forgets the oldest ones.
func (l *receiptLog) add(fresh []Receipt) {
	if len(fresh) == 0 {
		return
	}
	kept := l.list[:0]
	for i := range l.list {
		replaced := false
		for j := range fresh {
			replaced = replaced || fresh[j].same(&l.list[i])
		}
		if !replaced {
			kept = append(kept, l.list[i])
		}
	}
	clear(l.list[len(kept):])
	l.list = kept
	l.list = append(l.list, fresh...)
	if over := len(l.list) - keepReceipts; over > 0 {
		l.from = l.list[over-1].Pos
		l.list = append(make([]Receipt, 0, keepReceipts), l.list[over:]...)
	}
}
