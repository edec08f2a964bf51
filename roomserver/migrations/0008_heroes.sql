-- The first members of a room, after whom it is named if it has no name.
CREATE INDEX room_members_by_event ON room_members (room, event);
