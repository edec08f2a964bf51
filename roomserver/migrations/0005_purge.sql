-- How far the history of a room has been purged.
CREATE TABLE room_purges (
    room   BIGINT PRIMARY KEY,
    before BIGINT NOT NULL, -- messages with an older origin_server_ts are gone
    anchor BIGINT NOT NULL, -- everything before this place of the history order is gone
    sub    BIGINT NOT NULL,
    swept  BOOLEAN NOT NULL -- state that only purged events had is gone too
);

-- Rooms that the last local user may have forgotten, and rooms that are gone, whose rows are still to be deleted.
CREATE TABLE room_removals (
    room    BIGINT PRIMARY KEY,
    room_id BYTEA NOT NULL,
    since   BIGINT NOT NULL, -- when somebody forgot it last, in milliseconds
    begun   BOOLEAN NOT NULL -- the room is gone
);
INSERT INTO room_removals (room, room_id, since, begun)
    SELECT nid, room_id, 0, FALSE FROM rooms WHERE nid IN (SELECT room FROM room_members WHERE forgotten);

-- Messages, and refused events, that have no place in the timeline.
CREATE INDEX events_loose ON events (room, ts) WHERE anchor IS NULL AND chain_order IS NULL;
