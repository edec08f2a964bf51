-- Which node's statements advance the log, the last batch it committed so, and the position before that: a lone statement
-- then has one row to guard it, to number it and to learn its fate from. (A check is parsed anew by each statement.)
-- only: postgres
ALTER TABLE log_head DROP CONSTRAINT IF EXISTS log_head_id_check;
-- only: postgres
ALTER TABLE log_head ADD COLUMN node BIGINT NOT NULL DEFAULT 0, ADD COLUMN batch BIGINT NOT NULL DEFAULT 0, ADD COLUMN base BIGINT NOT NULL DEFAULT 0;

-- What log_head said of a node before it named another.
-- only: postgres
CREATE TABLE log_owners (node BIGINT PRIMARY KEY, batch BIGINT NOT NULL, base BIGINT NOT NULL);
