-- When a signature was uploaded: the signer's other devices have to hear of whom it is about.
ALTER TABLE key_signatures ADD COLUMN pos BIGINT NOT NULL DEFAULT 0;
