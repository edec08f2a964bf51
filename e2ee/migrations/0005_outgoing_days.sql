-- Where the log stood on past days, which tells how old EDUs are that still wait for their servers.
CREATE TABLE outgoing_days (
    ts  BIGINT PRIMARY KEY, -- in milliseconds
    pos BIGINT NOT NULL
);
