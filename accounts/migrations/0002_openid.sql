-- OpenID tokens by their SHA-256: who holds one may learn whose it is, and nothing else.
CREATE TABLE openid_tokens (
    hash       BYTEA PRIMARY KEY,
    user_id    BYTEA NOT NULL,
    expires_ts BIGINT NOT NULL
) /*sqlite WITHOUT ROWID*/;
CREATE INDEX openid_tokens_user ON openid_tokens (user_id, expires_ts);
