-- Rooms that were entered without most of their members (MSC3706, MSC3902).
CREATE TABLE partial_rooms (
    room    BIGINT PRIMARY KEY,
    via     BYTEA NOT NULL,  -- the server that let us in
    servers BYTEA NOT NULL,  -- JSON: the servers in the room, as that one said
    seen    BYTEA NOT NULL,  -- JSON: the servers that turned out to have been in it since
    since   BIGINT NOT NULL, -- position of the entry
    until   BIGINT NOT NULL, -- position from which on the state was whole; 0: it is not yet
    told    BOOLEAN NOT NULL -- those who wait for the end have been told of it
);
CREATE INDEX partial_rooms_open ON partial_rooms (room) WHERE NOT told;

-- States after unknown parents of events in such rooms, from which the states around these are computed again.
CREATE TABLE partial_given (
    room  BIGINT NOT NULL,
    event BIGINT NOT NULL,
    n     BIGINT NOT NULL,
    root  BIGINT,            -- NULL: without members, to be asked for
    PRIMARY KEY (room, event, n)
) /*sqlite WITHOUT ROWID*/;

-- Events whose states are computed from one without members.
CREATE INDEX events_partial ON events (room) WHERE flags & 128 <> 0;
