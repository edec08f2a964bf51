-- Events that are to be sent later and, for some time, those that were sent or cancelled.
CREATE TABLE delayed_events (
    delay_id     BYTEA PRIMARY KEY, -- random: who knows it may manage the event
    user_id      BYTEA NOT NULL,
    room_id      BYTEA NOT NULL,
    type         BYTEA NOT NULL,
    state_key    BYTEA,             -- NULL for a message
    content      BYTEA NOT NULL,
    origin_ts    BIGINT NOT NULL,   -- the time that an application service gave the event; 0: none
    sticky_ms    BIGINT,            -- NULL for an event that is not sticky
    delay_ms     BIGINT NOT NULL,
    scheduled_ts BIGINT NOT NULL,   -- when it was scheduled or last restarted
    due_ts       BIGINT NOT NULL,
    txn          BYTEA,             -- hash of user, device, path and transaction id of the request
    finalised_ts BIGINT,            -- NULL as long as it is to be sent
    event_id     BYTEA,             -- of a sent one
    error        BYTEA              -- JSON: why it could not be sent
);
CREATE UNIQUE INDEX delayed_events_txn ON delayed_events (txn) WHERE txn IS NOT NULL;
CREATE INDEX delayed_events_due ON delayed_events (due_ts, delay_id) WHERE finalised_ts IS NULL;
CREATE INDEX delayed_events_by_user ON delayed_events (user_id, due_ts);
CREATE INDEX delayed_events_finalised ON delayed_events (finalised_ts) WHERE finalised_ts IS NOT NULL;
