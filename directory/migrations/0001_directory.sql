-- Rooms in the lists of application services, beside the server's own list (roomserver's table public_rooms).
CREATE TABLE appservice_rooms (
    appservice BYTEA NOT NULL, -- id of its registration
    network    BYTEA NOT NULL,
    room       BIGINT NOT NULL,
    PRIMARY KEY (appservice, network, room)
) /*sqlite WITHOUT ROWID*/;
