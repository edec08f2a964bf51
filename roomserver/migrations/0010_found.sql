-- Servers in such a room of which nobody knew before its members became known.
ALTER TABLE partial_rooms ADD COLUMN found BYTEA; -- JSON
