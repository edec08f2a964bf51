CREATE INDEX accounts_guests ON accounts (user_id) WHERE kind = 1;
