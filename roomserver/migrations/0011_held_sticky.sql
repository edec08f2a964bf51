-- Sticky events that the current state refuses (MSC4354): they are judged again when that changes, as long as they are sticky.
CREATE TABLE held_sticky_events (
    room    BIGINT NOT NULL,
    event   BIGINT NOT NULL,
    expires BIGINT NOT NULL, -- milliseconds since 1970
    PRIMARY KEY (room, event)
) /*sqlite WITHOUT ROWID*/;
CREATE INDEX held_sticky_events_by_expiry ON held_sticky_events (expires);
