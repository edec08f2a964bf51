// Package storage keeps everything that must survive a crash: one log of positions, one
// group commit, one SQL text on SQLite or PostgreSQL. It holds no feature's SQL; each
// feature owns its tables and hands in its migrations as a [Schema].
//
// # Positions
//
// Every durable thing a client or a remote server may have to hear about gets a position
// from one sequence (table log_head). Positions are allocated inside the transaction that
// writes the thing, under the lock that also orders commits, so they become visible in
// order: whoever reads a snapshot with head N sees everything at or below N, and nothing at
// or below N appears later. A failed unit leaves no gap that fills afterwards.
//
// # Writing
//
// Writers never commit themselves. They hand a unit, which is all or nothing, to the
// committer; it takes everything that has queued up while the previous flush was on its way
// to the disk and commits it as one transaction (one flush in flight per node, no artificial
// delay). There are two doors:
//
//   - [DB.Append] and, for who then waits, [DB.Submit] take a [Unit] of rows of declared tables. It is the hot
//     path: on SQLite a loop of prepared inserts, on PostgreSQL one statement for the whole batch.
//   - [DB.Write] takes a function that runs arbitrary SQL.
//
// On PostgreSQL a lone unit of which it is certain that it cannot fail ([Unit.Fresh]) is first written as one row, the entry
// of a journal, and its rows follow before anybody reads. That takes half the time.
//
// A unit whose precondition fails, or whose row exists already ([ErrConflict]), is answered
// with that error and harms no other unit of its batch: the batch is rolled back and run
// again with each unit fenced by a savepoint. That is why a Write function may run more than
// once and must touch nothing but its transaction and its own captured results, which it
// must assign (not append to) afresh on each run.
//
// The committer is one queue for the whole node. A unit that runs for long holds up every
// other write; maintenance (purges, rebuilds) must be cut into small Writes.
//
// # Publication
//
// After the flush, in position order: [Unit.Apply] of each unit, then the subscribers with
// the batch's notices, then [DB.Head] advances, then the watchers wake who waits, and only then
// the writers are answered. So a client that was answered finds its own write, everything at or
// below Head has been seen by every subscriber, and who is woken finds Head where it should be.
//
// # Reading
//
// [DB.Read] runs a function on one consistent snapshot. Reads never wait for writes, but for
// what is in the journal (postgres_journal.go). They
// must be short and must end before bytes go to a socket; one that exceeds the time limit is
// interrupted.
//
// # Failure
//
// An answered write is on disk (synchronous=FULL, synchronous_commit=on). On SQLite, while the
// disk has no space, writes fail with [ErrFull] and leave nothing behind; they are tried again
// every second, so that the process goes on by itself. Any other I/O
// error stops all writing with [ErrBroken] until the process is started again, because after
// a failed fsync nothing is known about the file. On PostgreSQL a lost connection during a
// commit is settled by reading what happened before anyone is answered.
package storage
