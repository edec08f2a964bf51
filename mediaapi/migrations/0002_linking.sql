-- Media that is for those alone who see what it is attached to (MSC3911).
CREATE TABLE media_restricted (
    origin BYTEA NOT NULL,
    id     BYTEA NOT NULL,
    PRIMARY KEY (origin, id)
) /*sqlite WITHOUT ROWID*/;

-- What it is attached to: an event or a user's profile. Both empty, for remote media: something unknown.
CREATE TABLE media_attachments (
    origin  BYTEA NOT NULL,
    id      BYTEA NOT NULL,
    event   BYTEA NOT NULL,
    profile BYTEA NOT NULL,
    PRIMARY KEY (origin, id)
) /*sqlite WITHOUT ROWID*/;
