-- How far the unread events of a user in a room were counted, to go on from there after a restart. Any row may be
-- missing or old: then more is counted again.
CREATE TABLE unread_checkpoints (
    user_id    BYTEA NOT NULL,
    room       BIGINT NOT NULL,
    checkpoint BYTEA NOT NULL, -- counts.Counter's, encoded
    PRIMARY KEY (user_id, room)
) /*sqlite WITHOUT ROWID*/;
