-- only: sqlite
CREATE VIRTUAL TABLE words USING fts5(terms, content='', contentless_delete=1, detail=none, tokenize="ascii tokenchars '_'");
-- only: postgres
CREATE TABLE words (rowid BIGINT PRIMARY KEY, terms tsvector NOT NULL);
-- only: postgres
CREATE INDEX words_gin ON words USING gin (terms) WITH (fastupdate = off);
