-- Small batches, written as one row each before they are written to their tables (postgres_journal.go). turn grows with each
-- change, so that a writer who does not know of the last one changes nothing; base is the position before the entry's first.
-- What is at or beyond the log's head has not been written to its tables. A slot has a page to itself, so that its old versions stay in it.
-- only: postgres
CREATE TABLE log_journal (slot BIGINT PRIMARY KEY, turn BIGINT NOT NULL, base BIGINT NOT NULL, entry BYTEA NOT NULL) WITH (fillfactor = 10, toast_tuple_target = 8160);
-- only: postgres
ALTER TABLE log_journal ALTER COLUMN entry SET STORAGE MAIN;
-- only: postgres
INSERT INTO log_journal (slot, turn, base, entry) SELECT slot, 0, -1, '' FROM generate_series(0, 63) AS s (slot);
