CREATE TABLE events (
    nid  BIGINT PRIMARY KEY,
    room BIGINT NOT NULL,
    pos  BIGINT NOT NULL,
    id   BYTEA NOT NULL UNIQUE,
    json BYTEA
);
CREATE INDEX events_pos ON events (pos);
CREATE TABLE rooms (
    room BIGINT PRIMARY KEY,
    last BIGINT NOT NULL,
    note BYTEA NOT NULL
) /*sqlite WITHOUT ROWID*/;
CREATE TABLE names (
    name  BYTEA PRIMARY KEY,
    ok    BOOLEAN NOT NULL,
    words TEXT
);
