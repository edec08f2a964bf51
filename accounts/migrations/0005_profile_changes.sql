-- When profile fields changed last, deleted ones among them.
CREATE TABLE profile_changes (
    user_id BYTEA NOT NULL,
    field   BYTEA NOT NULL,
    pos     BIGINT NOT NULL,
    PRIMARY KEY (user_id, field)
) /*sqlite WITHOUT ROWID*/;
CREATE INDEX profile_changes_by_pos ON profile_changes (pos, user_id, field);
