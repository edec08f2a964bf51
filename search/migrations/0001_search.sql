-- How far the log is in the index. One row.
CREATE TABLE search_cursor (
    one BIGINT PRIMARY KEY,
    pos BIGINT NOT NULL
);

-- Rooms that are in the index further than the cursor says, while it catches up.
CREATE TABLE search_progress (
    room BIGINT PRIMARY KEY,
    pos  BIGINT NOT NULL
);

-- What can be found: messages as they were edited last, names and topics of rooms. An id grows with the event's place in
-- history; its terms are in search_terms under the same number.
CREATE TABLE search_events (
    id           BIGINT PRIMARY KEY,
    room         BIGINT NOT NULL,
    event        BIGINT NOT NULL,
    part         BIGINT NOT NULL, -- part: what of the event was indexed
    sender       BYTEA NOT NULL,
    state_before BIGINT NOT NULL,
    words        BYTEA NOT NULL   -- its terms in their order, with a space before and after each
);
-- only: sqlite
CREATE VIRTUAL TABLE search_terms USING fts5(terms, content='', contentless_delete=1, detail=none, tokenize="ascii tokenchars '_'");
-- only: postgres
CREATE TABLE search_terms (rowid BIGINT PRIMARY KEY, terms tsvector NOT NULL);
-- only: postgres
CREATE INDEX search_terms_gin ON search_terms USING gin (terms) WITH (fastupdate = off);

-- Users who are joined to a room, with the terms that directory_terms has for them under the same number. For remote
-- users name and avatar are those of their newest membership.
CREATE TABLE directory_users (
    id      BIGINT PRIMARY KEY,
    user_id BYTEA NOT NULL UNIQUE,
    name    BYTEA NOT NULL,
    avatar  BYTEA NOT NULL,
    terms   BYTEA NOT NULL
);
CREATE TABLE directory_rooms (
    member BIGINT NOT NULL,
    room   BIGINT NOT NULL,
    PRIMARY KEY (member, room)
) /*sqlite WITHOUT ROWID*/;

-- Rooms whose members everybody may find: everybody may join them or read their history.
CREATE TABLE directory_open_rooms (
    room BIGINT PRIMARY KEY
);
-- only: sqlite
CREATE VIRTUAL TABLE directory_terms USING fts5(terms, content='', contentless_delete=1, detail=none, prefix='1 2 3 4 5 6 7 8', tokenize="ascii tokenchars '_'");
-- only: postgres
CREATE TABLE directory_terms (rowid BIGINT PRIMARY KEY, terms tsvector NOT NULL);
-- only: postgres
CREATE INDEX directory_terms_gin ON directory_terms USING gin (terms) WITH (fastupdate = off);
