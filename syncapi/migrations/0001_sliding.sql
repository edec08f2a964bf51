-- Connections of sliding sync. Each device may have some, told apart by a name of its own.
CREATE TABLE sliding_connections (
    user_id   BYTEA NOT NULL,
    device_id BYTEA NOT NULL,
    name      BYTEA NOT NULL,
    conn      BIGINT NOT NULL, -- random, part of the tokens
    used      BIGINT NOT NULL, -- when it was last used, in milliseconds, give or take an hour
    PRIMARY KEY (user_id, device_id, name)
) /*sqlite WITHOUT ROWID*/;
CREATE INDEX sliding_connections_used ON sliding_connections (used);

-- What a connection was sent. Each row is an answer: what it changed over the one that it was built on, or
-- (base 0) all that the client knows then.
CREATE TABLE sliding_answers (
    conn BIGINT NOT NULL,
    seq  BIGINT NOT NULL,
    base BIGINT NOT NULL,
    data BYTEA NOT NULL,
    PRIMARY KEY (conn, seq)
) /*sqlite WITHOUT ROWID*/;
