-- Places in rooms' histories with unknown events before them: timeline events whose parents are not all known.
CREATE TABLE room_gaps (
    room   BIGINT NOT NULL,
    anchor BIGINT NOT NULL, -- place of the event, as in events
    sub    BIGINT NOT NULL,
    event  BIGINT NOT NULL,
    PRIMARY KEY (room, anchor, sub)
) /*sqlite WITHOUT ROWID*/;
