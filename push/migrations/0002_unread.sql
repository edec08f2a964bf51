-- How far the unread events of a user in a room were counted, to go on from there after a restart. Any row may be
-- missing or old: then more is counted again.
CREATE TABLE unread_checkpoints (
    room       BIGINT NOT NULL,
    user_id    BYTEA NOT NULL,
    checkpoint BYTEA NOT NULL, -- counts.Counter's, encoded
    PRIMARY KEY (room, user_id)
) /*sqlite WITHOUT ROWID*/;
