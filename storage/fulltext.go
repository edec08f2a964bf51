package storage

import "strings"

// Full-text search differs between the databases, so it is here, as far as it does: what words are is for the feature
// to say. It cuts text into terms, which it stores in an index under the numbers of its rows, and asks for the rows that
// have certain terms. A term consists of letters, digits and marks, in lower case where ASCII, and of underscores, which
// allow for terms that no text has. An index is a table that the feature declares in a migration like this:
//
//	-- only: sqlite
//	CREATE VIRTUAL TABLE things_terms USING fts5(terms, content='', contentless_delete=1, detail=none, tokenize="ascii tokenchars '_'");
//	-- only: postgres
//	CREATE TABLE things_terms (rowid BIGINT PRIMARY KEY, terms tsvector NOT NULL);
//	-- only: postgres
//	CREATE INDEX things_terms_gin ON things_terms USING gin (terms) WITH (fastupdate = off);

// Term is one term to look for.
type Term struct {
	// Text is the term, or its beginning if Prefix.
	Text   string
	Prefix bool
}

// TermQuery asks for rows that have at least one term of each list. No list may be empty, nor the query.
type TermQuery [][]Term

// DeclareTerms declares an index for units of rows: a row is its number and its [Text], terms separated by spaces, and
// replaces what the index has of that number.
func DeclareTerms(index string) *Table {
	t := DeclareTable(index, Put, Key("rowid", Int), Col("terms", terms))
	t.insertSQL = "INSERT INTO " + index + " (rowid, terms) VALUES ($1, CAST($2 AS tsvector))" + t.onConflict()
	t.liteSQL = "INSERT OR REPLACE INTO " + index + " (rowid, terms) VALUES ($1, $2)" // a virtual table has no ON CONFLICT
	return t
}

// SetTerms replaces what an index has of a row; terms are separated by spaces.
func (tx *Tx) SetTerms(index *Table, id int64, terms string) error {
	sql := index.insertSQL
	if tx.lite != nil {
		sql = index.liteSQL
	}
	_, err := tx.Exec(sql, id, Text(terms))
	return err
}

// DropTerms takes a row out of an index.
func (tx *Tx) DropTerms(index *Table, id int64) error {
	_, err := tx.Exec(index.deleteSQL, id)
	return err
}

// Matching returns the condition that a row of an index fulfils a query, with the argument for its $1, and the expression
// that sorts matches by their number, the index's column rowid. SQLite sorts without looking at all matches. PostgreSQL
// must be kept from trying that, because it would read the whole index for a term that is rarer than it believes.
func (tx *Tx) Matching(index *Table, q TermQuery) (condition, order string, query Text) {
	and, or, quote, star := " AND ", " OR ", `"`, " *"
	condition, order = index.name+` MATCH $1`, index.name+`.rowid`
	if tx.pg != nil {
		and, or, quote, star = " & ", " | ", `'`, ":*"
		condition, order = index.name+`.terms @@ CAST($1 AS tsquery)`, index.name+`.rowid + 0`
	}
	var b strings.Builder
	for i, list := range q {
		if i > 0 {
			b.WriteString(and)
		}
		b.WriteByte('(')
		for j, t := range list {
			if j > 0 {
				b.WriteString(or)
			}
			b.WriteString(quote + t.Text + quote)
			if t.Prefix {
				b.WriteString(star)
			}
		}
		b.WriteByte(')')
	}
	return condition, order, Text(b.String())
}
