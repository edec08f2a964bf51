-- To which threads users have subscribed, and from which they have unsubscribed: one row for each, whose position moves.
CREATE TABLE thread_subscriptions (
    user_id    BYTEA NOT NULL,
    room       BIGINT NOT NULL,
    thread     BYTEA NOT NULL,   -- event id of the root
    pos        BIGINT NOT NULL,  -- log position of the last change
    subscribed BOOLEAN NOT NULL,
    automatic  BOOLEAN NOT NULL, -- subscribed by a client without being told to
    PRIMARY KEY (user_id, room, thread)
) /*sqlite WITHOUT ROWID*/;
CREATE INDEX thread_subscriptions_by_pos ON thread_subscriptions (user_id, pos);
CREATE INDEX thread_subscriptions_by_room ON thread_subscriptions (room);
