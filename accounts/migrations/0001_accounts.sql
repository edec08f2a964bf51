-- Local users. A row is never deleted: a user id, once given out, stays taken.
CREATE TABLE accounts (
    user_id        BYTEA PRIMARY KEY,
    kind           BIGINT NOT NULL,  -- 0 person, 1 guest, 2 made by an application service
    password_hash  BYTEA,            -- PHC string; NULL: nobody can log in with a password
    appservice_id  BYTEA,            -- which application service made it
    user_type      BYTEA,            -- as the administrator's tool said, for example bot
    admin          BOOLEAN NOT NULL,
    locked         BOOLEAN NOT NULL,
    suspended      BOOLEAN NOT NULL,
    erased         BOOLEAN NOT NULL,
    created_ts     BIGINT NOT NULL,
    deactivated_ts BIGINT
) /*sqlite WITHOUT ROWID*/;
CREATE INDEX accounts_admin ON accounts (user_id) WHERE admin;

CREATE TABLE devices (
    user_id      BYTEA NOT NULL,
    device_id    BYTEA NOT NULL,
    display_name BYTEA,
    created_ts   BIGINT NOT NULL,
    last_seen_ts BIGINT,
    last_seen_ip BYTEA,
    PRIMARY KEY (user_id, device_id)
) /*sqlite WITHOUT ROWID*/;

-- Access tokens by the SHA-256 of the token. generation counts the refreshes of the device's session; tokens of
-- sessions that cannot refresh have 0. used is false until a token that came from a refresh shows up for the
-- first time, which revokes the generations before it.
CREATE TABLE access_tokens (
    hash       BYTEA PRIMARY KEY,
    id         BIGINT NOT NULL,
    user_id    BYTEA NOT NULL,
    device_id  BYTEA NOT NULL,
    generation BIGINT NOT NULL,
    used       BOOLEAN NOT NULL,
    expires_ts BIGINT
) /*sqlite WITHOUT ROWID*/;
CREATE INDEX access_tokens_device ON access_tokens (user_id, device_id);

-- Revoked refresh tokens stay for a few generations, so that their reuse is noticed.
CREATE TABLE refresh_tokens (
    hash       BYTEA PRIMARY KEY,
    user_id    BYTEA NOT NULL,
    device_id  BYTEA NOT NULL,
    generation BIGINT NOT NULL,
    revoked    BOOLEAN NOT NULL
) /*sqlite WITHOUT ROWID*/;
CREATE INDEX refresh_tokens_device ON refresh_tokens (user_id, device_id);

-- Single-use tokens for m.login.token.
CREATE TABLE login_tokens (
    hash       BYTEA PRIMARY KEY,
    user_id    BYTEA NOT NULL,
    expires_ts BIGINT NOT NULL
) /*sqlite WITHOUT ROWID*/;
CREATE INDEX login_tokens_user ON login_tokens (user_id);

CREATE TABLE registration_tokens (
    token        BYTEA PRIMARY KEY,
    uses_allowed BIGINT,             -- NULL: any number
    uses         BIGINT NOT NULL,
    expires_ts   BIGINT,             -- NULL: never
    makes_admin  BOOLEAN NOT NULL,   -- the token of a server without administrators
    created_ts   BIGINT NOT NULL
) /*sqlite WITHOUT ROWID*/;

-- Sessions of user-interactive authentication, by the SHA-256 of the session id. params are the members of the
-- request that began it, encrypted with a key that only the session id yields.
CREATE TABLE uia_sessions (
    hash       BYTEA PRIMARY KEY,
    operation  BYTEA NOT NULL,
    user_id    BYTEA NOT NULL,       -- who asked; empty: someone not logged in
    verified   BYTEA NOT NULL,       -- who gave the right password; empty: nobody yet
    reg_token  BYTEA NOT NULL,       -- the registration token shown, or empty
    completed  BYTEA NOT NULL,       -- stages, separated by spaces
    params     BYTEA,
    expires_ts BIGINT NOT NULL
) /*sqlite WITHOUT ROWID*/;
CREATE INDEX uia_sessions_expiry ON uia_sessions (expires_ts);

-- Account data; room_id is empty for data outside rooms. NULL content is a deletion that devices have to hear of.
CREATE TABLE account_data (
    user_id BYTEA NOT NULL,
    room_id BYTEA NOT NULL,
    type    BYTEA NOT NULL,
    content BYTEA,
    pos     BIGINT NOT NULL,
    PRIMARY KEY (user_id, room_id, type)
) /*sqlite WITHOUT ROWID*/;
CREATE INDEX account_data_pos ON account_data (user_id, pos);

CREATE TABLE profiles (
    user_id BYTEA NOT NULL,
    field   BYTEA NOT NULL,
    value   BYTEA NOT NULL,          -- JSON
    PRIMARY KEY (user_id, field)
) /*sqlite WITHOUT ROWID*/;

CREATE TABLE filters (
    user_id   BYTEA NOT NULL,
    filter_id BYTEA NOT NULL,
    content   BYTEA NOT NULL,
    PRIMARY KEY (user_id, filter_id)
) /*sqlite WITHOUT ROWID*/;

-- Work that follows from a change of an account and takes many steps in rooms: it goes on after a restart.
CREATE TABLE account_jobs (
    id       BIGINT PRIMARY KEY,
    user_id  BYTEA NOT NULL,
    kind     BIGINT NOT NULL,        -- 1 propagate a profile change, 2 leave all rooms
    data     BYTEA NOT NULL,
    attempts BIGINT NOT NULL,
    next_ts  BIGINT NOT NULL
);
CREATE INDEX account_jobs_next ON account_jobs (next_ts, id);
CREATE INDEX account_jobs_user ON account_jobs (user_id, id);
