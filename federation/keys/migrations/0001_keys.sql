-- Signing keys of other servers, each with the newest document that named it.
CREATE TABLE federation_keys (
    server      BYTEA NOT NULL,
    key_id      BYTEA NOT NULL, -- with the algorithm: "ed25519:a_b"
    public_key  BYTEA NOT NULL, -- 32 bytes
    valid_until BIGINT NOT NULL, -- what the document says, in milliseconds
    expired     BIGINT NOT NULL, -- of an old key: when it expired, in milliseconds; 0 for a current one
    fetched     BIGINT NOT NULL, -- when the document was read, in milliseconds
    document    BYTEA NOT NULL, -- canonical, with all its signatures
    PRIMARY KEY (server, key_id)
) /*sqlite WITHOUT ROWID*/;
