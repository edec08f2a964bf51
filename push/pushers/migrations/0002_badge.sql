-- The number of unread messages that the gateway was told last; -1: none. One that falls is owed to the gateway.
ALTER TABLE pushers ADD COLUMN badge BIGINT NOT NULL DEFAULT -1;
