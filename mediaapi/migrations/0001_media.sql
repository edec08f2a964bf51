-- What has an mxc:// URI. Several may share one blob.
CREATE TABLE media (
    origin      BYTEA NOT NULL,   -- the server in the URI
    id          BYTEA NOT NULL,
    blob        BYTEA,            -- null: created, and not uploaded yet
    size        BIGINT NOT NULL,
    type        BYTEA NOT NULL,
    name        BYTEA,
    uploader    BYTEA NOT NULL,   -- empty: fetched from its origin
    created     BIGINT NOT NULL,  -- this and other times: milliseconds; for remote media when it was fetched
    expires     BIGINT NOT NULL,  -- when a created URI may no longer be uploaded to
    accessed    BIGINT NOT NULL,
    purpose     BIGINT NOT NULL,  -- 0: somebody's upload, 1: the image of a URL preview
    open        BOOLEAN NOT NULL, -- the unauthenticated endpoints serve it
    quarantined BYTEA,            -- by whom
    safe        BOOLEAN NOT NULL, -- it may not be quarantined
    PRIMARY KEY (origin, id)
) /*sqlite WITHOUT ROWID*/;
CREATE INDEX media_by_blob ON media (blob);
CREATE INDEX media_by_uploader ON media (uploader, created);
CREATE INDEX media_by_access ON media (accessed);

-- The files of the store.
CREATE TABLE media_blobs (
    key  BYTEA PRIMARY KEY,
    hash BYTEA NOT NULL UNIQUE,
    size BIGINT NOT NULL
) /*sqlite WITHOUT ROWID*/;

-- Thumbnails of blobs; they are blobs themselves.
CREATE TABLE media_thumbnails (
    blob     BYTEA NOT NULL,
    width    BIGINT NOT NULL,
    height   BIGINT NOT NULL,
    method   BYTEA NOT NULL,
    animated BOOLEAN NOT NULL,
    type     BYTEA NOT NULL,
    size     BIGINT NOT NULL,
    data     BYTEA NOT NULL, -- the key of the thumbnail
    PRIMARY KEY (blob, width, height, method, animated)
) /*sqlite WITHOUT ROWID*/;
CREATE INDEX media_thumbnails_by_data ON media_thumbnails (data);

-- Content that nobody may upload or get.
CREATE TABLE media_blocked (
    hash BYTEA PRIMARY KEY,
    by   BYTEA NOT NULL,
    at   BIGINT NOT NULL
) /*sqlite WITHOUT ROWID*/;

-- What pages say of themselves.
CREATE TABLE media_previews (
    url     BYTEA PRIMARY KEY,
    fetched BIGINT NOT NULL,
    expires BIGINT NOT NULL,
    body    BYTEA NOT NULL
) /*sqlite WITHOUT ROWID*/;
CREATE INDEX media_previews_by_age ON media_previews (expires);
