-- The newest replacement of each room that a local user upgraded. Until it is finished, what follows the making of the
-- new room may have to be done again.
CREATE TABLE room_upgrades (
    old_room BYTEA PRIMARY KEY,
    new_room BYTEA NOT NULL,
    user_id  BYTEA NOT NULL,
    finished BOOLEAN NOT NULL
);
CREATE INDEX room_upgrades_open ON room_upgrades (old_room) WHERE NOT finished;
