-- The room in which the server talks to a user.
CREATE TABLE notice_rooms (
    user_id BYTEA PRIMARY KEY,
    room_id BYTEA NOT NULL
) /*sqlite WITHOUT ROWID*/;
