-- Where users' clients want to be told of events.
CREATE TABLE pushers (
    user_id             BYTEA NOT NULL,
    app_id              BYTEA NOT NULL,
    pushkey             BYTEA NOT NULL,
    kind                BYTEA NOT NULL,
    app_display_name    BYTEA NOT NULL,
    device_display_name BYTEA NOT NULL,
    profile_tag         BYTEA NOT NULL,
    lang                BYTEA NOT NULL,
    data                BYTEA NOT NULL,  -- a JSON object
    device_id           BYTEA NOT NULL,  -- the device that set it, with which it goes
    set_ts              BIGINT NOT NULL, -- when the pushkey was set, in milliseconds
    told                BIGINT NOT NULL, -- up to which position of the log the gateway was told, or need not be
    failing_since       BIGINT NOT NULL, -- since when the gateway does not take anything, in milliseconds; 0: it does
    PRIMARY KEY (user_id, app_id, pushkey)
);
CREATE INDEX pushers_by_key ON pushers (app_id, pushkey);
