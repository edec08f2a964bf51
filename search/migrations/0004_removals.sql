-- Whom the removal of a room has taken out of it, of which the log does not tell, until their entry in the directory follows.
CREATE TABLE directory_removals (
    member BIGINT NOT NULL,
    room   BIGINT NOT NULL,
    PRIMARY KEY (member, room)
) /*sqlite WITHOUT ROWID*/;
