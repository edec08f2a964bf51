-- Rooms this server knows, by a short number that all other tables use.
CREATE TABLE rooms (
    nid     BIGINT PRIMARY KEY,
    room_id BYTEA NOT NULL UNIQUE,
    version BYTEA NOT NULL,
    -- seed keys the hash of the room's state trie, so that nobody outside can aim for collisions.
    seed    BYTEA NOT NULL
);

-- What the next event of a room builds on. One row a room, replaced with every event.
CREATE TABLE room_heads (
    room        BIGINT PRIMARY KEY,
    extremities BYTEA NOT NULL, -- forward extremities: event nids as varints
    state       BIGINT NOT NULL, -- root of the current resolved state
    pos         BIGINT NOT NULL  -- position of the room's last entry in the log
);

-- Every event, once: timeline, outliers, rejected and soft-failed ones.
CREATE TABLE events (
    nid          BIGINT PRIMARY KEY,
    room         BIGINT NOT NULL,
    event_id     BYTEA NOT NULL, -- 32 bytes of hash (room versions 3 and later), else the whole id
    flags        BIGINT NOT NULL,
    anchor       BIGINT, -- history order (anchor, sub); NULL for outliers
    sub          BIGINT NOT NULL,
    state_before BIGINT, -- root of the state before the event; NULL for outliers
    ts           BIGINT NOT NULL, -- origin_server_ts
    state_after  BIGINT, -- root of the state after it, if the event changed it
    chain_order  BIGINT, -- place of a state event in the index of auth chains (package authchain)
    chain        BYTEA,
    txn          BYTEA,  -- device and transaction id of the local client that sent it
    json         BYTEA NOT NULL
);
CREATE UNIQUE INDEX events_by_id ON events (event_id, room);
CREATE UNIQUE INDEX events_by_order ON events (room, anchor, sub) WHERE anchor IS NOT NULL;
CREATE UNIQUE INDEX events_by_chain ON events (room, chain_order) WHERE chain_order IS NOT NULL;
CREATE INDEX events_by_ts ON events (room, ts) WHERE anchor IS NOT NULL;

-- Nodes of the state tries: the rows of the pack of one change (package snapshot).
CREATE TABLE state_packs (
    room BIGINT NOT NULL,
    pack BIGINT NOT NULL,
    data BYTEA NOT NULL,
    PRIMARY KEY (room, pack)
) /*sqlite WITHOUT ROWID*/;

-- Every change of a room's current resolved state, with or without an event.
CREATE TABLE state_log (
    room     BIGINT NOT NULL,
    pos      BIGINT NOT NULL,
    old_root BIGINT NOT NULL,
    new_root BIGINT NOT NULL,
    PRIMARY KEY (room, pos)
) /*sqlite WITHOUT ROWID*/;

-- Current memberships of every room, derived from its current state.
CREATE TABLE room_members (
    room       BIGINT NOT NULL,
    user_id    BYTEA NOT NULL,
    membership BYTEA NOT NULL,
    event      BIGINT NOT NULL,
    pos        BIGINT NOT NULL, -- when the membership became this one
    local      BOOLEAN NOT NULL,
    forgotten  BOOLEAN NOT NULL,
    PRIMARY KEY (room, user_id)
) /*sqlite WITHOUT ROWID*/;
CREATE INDEX room_members_by_user ON room_members (user_id, room) WHERE local;

-- Invites and knocks of local users in rooms this server is not in, and how they ended.
CREATE TABLE outside_memberships (
    user_id    BYTEA NOT NULL,
    room_id    BYTEA NOT NULL,
    version    BYTEA NOT NULL,
    membership BYTEA NOT NULL,
    sender     BYTEA NOT NULL,
    event_id   BYTEA NOT NULL,
    event      BYTEA NOT NULL, -- the membership event
    stripped   BYTEA NOT NULL, -- JSON array of stripped state
    pos        BIGINT NOT NULL,
    forgotten  BOOLEAN NOT NULL,
    PRIMARY KEY (user_id, room_id)
) /*sqlite WITHOUT ROWID*/;

-- Transactions of local clients, by a hash of user, device, path and transaction id.
CREATE TABLE send_txns (
    key   BYTEA PRIMARY KEY,
    event BIGINT NOT NULL,
    ts    BIGINT NOT NULL
) /*sqlite WITHOUT ROWID*/;

-- Redactions: which event was redacted by which. A redaction that arrives first waits here by id.
CREATE TABLE redactions (
    room      BIGINT NOT NULL,
    target    BYTEA NOT NULL, -- as events.event_id
    redaction BIGINT NOT NULL,
    applied   BOOLEAN NOT NULL, -- its sender had the right to it
    PRIMARY KEY (room, target, redaction)
) /*sqlite WITHOUT ROWID*/;

-- Room aliases of this server.
CREATE TABLE room_aliases (
    alias   BYTEA PRIMARY KEY,
    room_id BYTEA NOT NULL,
    creator BYTEA NOT NULL
);
CREATE INDEX room_aliases_by_room ON room_aliases (room_id);

-- Rooms in this server's public directory.
CREATE TABLE public_rooms (
    room_id BYTEA PRIMARY KEY
);
