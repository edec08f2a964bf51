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
