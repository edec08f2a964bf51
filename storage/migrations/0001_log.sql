-- The log's last position and the generation (a random number of this log, never reused).
CREATE TABLE log_head (
    id         BIGINT PRIMARY KEY CHECK (id = 1),
    head       BIGINT NOT NULL,
    generation BIGINT NOT NULL
);

-- Numeric ids are handed out in blocks; next is the first id that no block holds.
CREATE TABLE id_blocks (
    name BYTEA PRIMARY KEY,
    next BIGINT NOT NULL
) /*sqlite WITHOUT ROWID*/;

-- The last batch each running node committed and the position before it: how a node learns the fate
-- of a COMMIT whose answer was lost. epoch is raised to shut out a statement still under way.
-- only: postgres
CREATE TABLE log_writers (node BIGINT PRIMARY KEY, epoch BIGINT NOT NULL, batch BIGINT NOT NULL, base BIGINT NOT NULL, seen BIGINT NOT NULL);
