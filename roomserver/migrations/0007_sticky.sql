-- Events that are sticky for a while (MSC4354). A row goes when that is over.
CREATE TABLE sticky_events (
    room    BIGINT NOT NULL,
    pos     BIGINT NOT NULL, -- the event's position
    event   BIGINT NOT NULL,
    expires BIGINT NOT NULL, -- milliseconds since 1970
    PRIMARY KEY (room, pos)
) /*sqlite WITHOUT ROWID*/;
CREATE INDEX sticky_events_by_expiry ON sticky_events (expires);
