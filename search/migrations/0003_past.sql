-- Events that took a place in the past of a room, of which the log does not tell, until they are in the index.
CREATE TABLE search_past (
    event BIGINT PRIMARY KEY,
    room  BIGINT NOT NULL
);
