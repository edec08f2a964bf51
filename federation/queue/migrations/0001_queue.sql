-- How far the queues have read the log: what came until then has been delivered or stands in the tables below.
CREATE TABLE federation_cursor (
    id  BIGINT PRIMARY KEY, -- 1
    pos BIGINT NOT NULL
);

-- Servers that did not take what they were sent last, with that transaction, to be repeated as it is.
CREATE TABLE federation_unreached (
    server   BYTEA PRIMARY KEY,
    failures BIGINT NOT NULL, -- in a row
    retry_at BIGINT NOT NULL, -- in milliseconds
    txn_id   BYTEA NOT NULL,  -- empty if there is no transaction
    txn      BYTEA NOT NULL,  -- its body
    covers   BYTEA NOT NULL   -- JSON: what is delivered with it
) /*sqlite WITHOUT ROWID*/;

-- What servers that could not be reached are owed: the last event of each room. They get the others from the rooms'
-- history.
CREATE TABLE federation_owed (
    server BYTEA NOT NULL,
    room   BIGINT NOT NULL,
    pos    BIGINT NOT NULL, -- log position of the event
    PRIMARY KEY (server, room)
) /*sqlite WITHOUT ROWID*/;
