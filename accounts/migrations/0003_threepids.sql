-- Identifiers of third-party networks that belong to accounts. Each belongs to one account only.
CREATE TABLE account_threepids (
    medium       BYTEA NOT NULL,
    address      BYTEA NOT NULL,
    user_id      BYTEA NOT NULL,
    validated_ts BIGINT NOT NULL,
    added_ts     BIGINT NOT NULL,
    PRIMARY KEY (medium, address)
) /*sqlite WITHOUT ROWID*/;
CREATE INDEX account_threepids_user ON account_threepids (user_id);

-- E-mail addresses that are being confirmed. secret and token are SHA-256 hashes: of what the client chose and of
-- what the e-mail holds.
CREATE TABLE email_sessions (
    sid          BYTEA PRIMARY KEY,
    purpose      BIGINT NOT NULL,  -- 1 register, 2 reset a password, 3 add to an account
    address      BYTEA NOT NULL,
    secret       BYTEA NOT NULL,
    token        BYTEA,            -- NULL: the e-mail told why there is nothing to confirm
    attempt      BIGINT NOT NULL,
    next_link    BYTEA NOT NULL,
    validated_ts BIGINT,
    expires_ts   BIGINT NOT NULL
) /*sqlite WITHOUT ROWID*/;
CREATE UNIQUE INDEX email_sessions_client ON email_sessions (purpose, address, secret);
CREATE INDEX email_sessions_expiry ON email_sessions (expires_ts);

-- The e-mail session that a user-interactive authentication was shown.
ALTER TABLE uia_sessions ADD COLUMN email_sid BYTEA;

-- Which documents users have accepted, and when.
CREATE TABLE accepted_terms (
    user_id     BYTEA NOT NULL,
    policy      BYTEA NOT NULL,
    version     BYTEA NOT NULL,
    accepted_ts BIGINT NOT NULL,
    PRIMARY KEY (user_id, policy, version)
) /*sqlite WITHOUT ROWID*/;
