-- Rooms of remote users, to find who shares one with them.
CREATE INDEX room_members_by_remote_user ON room_members (user_id, room) WHERE NOT local;
