-- Since which position of the log a room must have been shared with the user for the stored keys to be current.
ALTER TABLE remote_device_lists ADD COLUMN since BIGINT NOT NULL DEFAULT 0;
