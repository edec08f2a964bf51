-- Remote users of whose changed devices this server heard while it did not know whether it shares a room with them.
CREATE TABLE postponed_device_lists (
    user_id BYTEA PRIMARY KEY
) /*sqlite WITHOUT ROWID*/;
