-- The number of a room that was removed, of the users who have left it; 0: the room was never one of this server's.
ALTER TABLE outside_memberships ADD COLUMN room BIGINT NOT NULL DEFAULT 0;
