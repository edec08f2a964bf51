-- Profile fields of users of other servers, as their servers told them last. A field that is gone stays as a row without
-- a value. Display names and avatars are not here: memberships tell them.
CREATE TABLE remote_profiles (
    user_id BYTEA NOT NULL,
    field   BYTEA NOT NULL,
    value   BYTEA,                   -- JSON
    pos     BIGINT NOT NULL,         -- since when it is so
    PRIMARY KEY (user_id, field)
) /*sqlite WITHOUT ROWID*/;
CREATE INDEX remote_profiles_by_pos ON remote_profiles (pos, user_id, field);
