-- How far users have read. One row for each user, kind and thread, whose position moves.
CREATE TABLE receipts (
    room     BIGINT NOT NULL,
    user_id  BYTEA NOT NULL,
    kind     BIGINT NOT NULL, -- 1 m.read, 2 m.read.private, 3 the read marker m.fully_read
    thread   BYTEA NOT NULL, -- empty for an unthreaded receipt, "main", or the event id of the root
    event_id BYTEA NOT NULL,
    anchor   BIGINT NOT NULL, -- place of the event in the room's history order
    sub      BIGINT NOT NULL,
    ts       BIGINT NOT NULL,
    pos      BIGINT NOT NULL, -- log position of the last change
    PRIMARY KEY (room, user_id, kind, thread)
) /*sqlite WITHOUT ROWID*/;
CREATE INDEX receipts_by_pos ON receipts (room, pos);

-- Public receipts of other servers' users for events that are not known yet.
CREATE TABLE waiting_receipts (
    room     BIGINT NOT NULL,
    user_id  BYTEA NOT NULL,
    thread   BYTEA NOT NULL,
    event_id BYTEA NOT NULL,
    ts       BIGINT NOT NULL,
    PRIMARY KEY (room, user_id, thread)
) /*sqlite WITHOUT ROWID*/;

-- The status message that a user set last, for after a restart.
CREATE TABLE presence_status (
    user_id    BYTEA PRIMARY KEY,
    status_msg BYTEA NOT NULL
) /*sqlite WITHOUT ROWID*/;
