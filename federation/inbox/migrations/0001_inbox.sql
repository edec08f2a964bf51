-- Transactions of other servers. One with a body has been answered and waits to be worked through.
CREATE TABLE inbox_transactions (
    origin   BYTEA NOT NULL,
    txn_id   BYTEA NOT NULL,
    received BIGINT NOT NULL, -- ms
    answer   BYTEA NOT NULL,
    body     BYTEA,
    PRIMARY KEY (origin, txn_id)
) /*sqlite WITHOUT ROWID*/;
CREATE INDEX inbox_transactions_open ON inbox_transactions (received) WHERE body IS NOT NULL;
CREATE INDEX inbox_transactions_by_age ON inbox_transactions (received);
