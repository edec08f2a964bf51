-- Versions of what users changed of their push rules, each valid from its position to that of the
-- next one. The oldest one kept is valid from the beginning when older ones were pruned.
CREATE TABLE push_rules (
    user_id BYTEA NOT NULL,
    pos     BIGINT NOT NULL,
    overlay BYTEA NOT NULL, -- rules.Overlay, encoded
    PRIMARY KEY (user_id, pos)
) /*sqlite WITHOUT ROWID*/;
