-- What users reported, for those who run the server.
CREATE TABLE reports (
    id       BIGINT PRIMARY KEY,
    ts       BIGINT NOT NULL,
    reporter BYTEA NOT NULL,
    kind     BIGINT NOT NULL, -- 1 event, 2 room, 3 user
    room_id  BYTEA,           -- of events and rooms
    event_id BYTEA,           -- of events
    user_id  BYTEA,           -- the user reported, or who sent the event
    reason   BYTEA NOT NULL
);
CREATE INDEX reports_by_reporter ON reports (reporter, ts);
