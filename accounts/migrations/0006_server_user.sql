CREATE INDEX accounts_server_user ON accounts (user_id) WHERE kind = 3;
