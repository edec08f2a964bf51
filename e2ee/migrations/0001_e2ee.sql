-- Identity keys of devices: those of local users as they uploaded them, and those of remote users while their list of
-- devices is followed (remote_device_lists).
CREATE TABLE device_keys (
    user_id      BYTEA NOT NULL,
    device_id    BYTEA NOT NULL,
    content      BYTEA NOT NULL, -- canonical JSON without "unsigned"
    display_name BYTEA,          -- of remote devices; that of local ones is in devices
    PRIMARY KEY (user_id, device_id)
) /*sqlite WITHOUT ROWID*/;

-- Master, self-signing and user-signing keys.
CREATE TABLE cross_signing_keys (
    user_id    BYTEA NOT NULL,
    usage      BYTEA NOT NULL,
    public_key BYTEA NOT NULL,   -- as clients write it: unpadded base64
    content    BYTEA NOT NULL,   -- canonical JSON
    PRIMARY KEY (user_id, usage)
) /*sqlite WITHOUT ROWID*/;

-- Signatures that local users uploaded for keys, besides those within the keys themselves.
CREATE TABLE key_signatures (
    signer    BYTEA NOT NULL,
    user_id   BYTEA NOT NULL,    -- whose key is signed
    target    BYTEA NOT NULL,    -- a device id, or a public key
    key_id    BYTEA NOT NULL,    -- with which key: "ed25519:…"
    signature BYTEA NOT NULL,
    PRIMARY KEY (signer, user_id, target, key_id)
) /*sqlite WITHOUT ROWID*/;
CREATE INDEX key_signatures_of ON key_signatures (user_id, target);

-- One-time keys. One that was claimed stays for a while, so that the repetition of an upload whose answer got lost does
-- not bring it back.
CREATE TABLE one_time_keys (
    user_id    BYTEA NOT NULL,
    device_id  BYTEA NOT NULL,
    algorithm  BYTEA NOT NULL,
    key_id     BYTEA NOT NULL,
    seq        BIGINT NOT NULL,  -- position of the upload: keys are given out in this order
    content    BYTEA NOT NULL,   -- canonical JSON
    claimed_ts BIGINT,
    PRIMARY KEY (user_id, device_id, algorithm, key_id)
) /*sqlite WITHOUT ROWID*/;
CREATE INDEX one_time_keys_free ON one_time_keys (user_id, device_id, algorithm, seq, key_id) WHERE claimed_ts IS NULL;

CREATE TABLE fallback_keys (
    user_id   BYTEA NOT NULL,
    device_id BYTEA NOT NULL,
    algorithm BYTEA NOT NULL,
    key_id    BYTEA NOT NULL,
    content   BYTEA NOT NULL,
    used      BOOLEAN NOT NULL,
    PRIMARY KEY (user_id, device_id, algorithm)
) /*sqlite WITHOUT ROWID*/;

-- When the devices or the identity of a user, local or remote, changed last.
CREATE TABLE device_list_changes (
    user_id BYTEA PRIMARY KEY,
    pos     BIGINT NOT NULL
) /*sqlite WITHOUT ROWID*/;
CREATE INDEX device_list_changes_pos ON device_list_changes (pos, user_id);

-- Changes of local users that other servers have yet to be told of.
CREATE TABLE device_list_news (
    pos       BIGINT NOT NULL,
    user_id   BYTEA NOT NULL,
    device_id BYTEA NOT NULL,    -- empty: the cross-signing keys
    PRIMARY KEY (pos, user_id, device_id)
) /*sqlite WITHOUT ROWID*/;

-- Up to which change of a local user another server was told.
CREATE TABLE device_lists_sent (
    user_id     BYTEA NOT NULL,
    destination BYTEA NOT NULL,
    stream_id   BIGINT NOT NULL,
    PRIMARY KEY (user_id, destination)
) /*sqlite WITHOUT ROWID*/;

-- EDUs on their way to other servers. A row goes when its destination has acknowledged it.
CREATE TABLE outgoing_edus (
    destination BYTEA NOT NULL,
    pos         BIGINT NOT NULL,
    n           BIGINT NOT NULL,
    type        BYTEA NOT NULL,
    content     BYTEA NOT NULL,
    PRIMARY KEY (destination, pos, n)
) /*sqlite WITHOUT ROWID*/;
CREATE INDEX outgoing_edus_pos ON outgoing_edus (pos, destination);

-- What is known of remote users' lists of devices.
CREATE TABLE remote_device_lists (
    user_id   BYTEA PRIMARY KEY,
    stream_id BIGINT NOT NULL,
    fresh     BOOLEAN NOT NULL,  -- the stored keys are the current ones
    mark      BIGINT NOT NULL    -- position at which it was last found not to be
) /*sqlite WITHOUT ROWID*/;

-- Messages to devices, until the device says that it has them.
CREATE TABLE to_device (
    user_id   BYTEA NOT NULL,
    device_id BYTEA NOT NULL,
    pos       BIGINT NOT NULL,
    event     BYTEA NOT NULL,    -- JSON, as the device is shown it
    PRIMARY KEY (user_id, device_id, pos)
) /*sqlite WITHOUT ROWID*/;

-- What was sent to devices already: a hash of user, device and transaction of a local client, or of server and message id.
CREATE TABLE to_device_txns (
    key        BYTEA PRIMARY KEY,
    expires_ts BIGINT NOT NULL
) /*sqlite WITHOUT ROWID*/;

-- The device that waits, encrypted, for its user to log in again (MSC3814).
CREATE TABLE dehydrated_devices (
    user_id   BYTEA PRIMARY KEY,
    device_id BYTEA NOT NULL,
    data      BYTEA NOT NULL
) /*sqlite WITHOUT ROWID*/;

CREATE TABLE key_backups (
    user_id   BYTEA NOT NULL,
    version   BIGINT NOT NULL,
    algorithm BYTEA NOT NULL,
    auth_data BYTEA NOT NULL,
    etag      BIGINT NOT NULL,   -- counts the requests that changed its keys
    keys      BIGINT NOT NULL,   -- how many there are
    deleted   BOOLEAN NOT NULL,
    PRIMARY KEY (user_id, version)
) /*sqlite WITHOUT ROWID*/;

CREATE TABLE key_backup_sessions (
    user_id             BYTEA NOT NULL,
    version             BIGINT NOT NULL,
    room_id             BYTEA NOT NULL,
    session_id          BYTEA NOT NULL,
    first_message_index BIGINT NOT NULL,
    forwarded_count     BIGINT NOT NULL,
    is_verified         BOOLEAN NOT NULL,
    session_data        BYTEA NOT NULL, -- JSON
    PRIMARY KEY (user_id, version, room_id, session_id)
) /*sqlite WITHOUT ROWID*/;

-- Up to which position of the log the members of rooms were followed.
CREATE TABLE e2ee_follower (
    one BIGINT PRIMARY KEY,
    pos BIGINT NOT NULL
);
