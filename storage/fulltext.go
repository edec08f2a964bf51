package storage

import (
	"fmt"
	"math/bits"
	"strings"
)

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

// DeclareTerms declares an index for units of rows: a row is its number and its [Text], terms separated by spaces. With
// Put it replaces what the index has of that number; Insert, which costs half as much, is for numbers that it does not have.
func DeclareTerms(index string, mode Mode) *Table {
	t := DeclareTable(index, mode, Key("rowid", Int), Col("terms", terms))
	t.insertSQL = "INSERT INTO " + index + " (rowid, terms) VALUES ($1, CAST($2 AS tsvector))" + t.onConflict()
	verb := "INSERT"
	if mode == Put { // a virtual table has no ON CONFLICT
		verb = "INSERT OR REPLACE"
	}
	t.liteSQL = verb + " INTO " + index + " (rowid, terms) VALUES ($1, $2)"
	return t
}

// Matching returns the condition that a row of an index fulfils a query, with the argument for its $1.
func (tx *Tx) Matching(index *Table, q TermQuery) (condition string, query Text) {
	and, or, quote, star := " AND ", " OR ", `"`, " *"
	condition = index.name + ` MATCH $1`
	if tx.pg != nil {
		and, or, quote, star = " & ", " | ", `'`, ":*"
		condition = `terms @@ CAST($1 AS tsquery)`
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
	return condition, Text(b.String())
}

const (
	// newestRows is how many rows PostgreSQL looks at one by one for the newest: enough to find 500 with a word that every
	// 16th has, and less work than to ask the index for a word that nobody has used. For some rows it looks at someRows.
	newestRows = 8192
	someRows   = 2048
	// comparedTerms bounds the terms that it compares for that.
	comparedTerms = 400_000
)

// Newest returns a query for the rows of an index with the highest numbers that fulfil q: $1 is the returned argument, $2
// the number below which they are, $3 how many at most. Its only column is id, the row's number.
func (tx *Tx) Newest(index *Table, q TermQuery) (numbers string, query Text) {
	condition, query := tx.Matching(index, q)
	if tx.pg == nil { // it finds them without looking at all matches
		return `SELECT rowid AS id FROM ` + index.name + ` WHERE ` + condition + ` AND rowid < $2 ORDER BY rowid DESC LIMIT $3`, query
	}
	return lookFirst(index, condition, q, newestRows, "$2", "$3"), query
}

// Some returns a query for rows of an index that fulfil q, whichever is easy to find: $1 is the returned argument, $2 how
// many at most. Its only column is id, the row's number.
func (tx *Tx) Some(index *Table, q TermQuery) (numbers string, query Text) {
	condition, query := tx.Matching(index, q)
	if tx.pg == nil {
		return `SELECT rowid AS id FROM ` + index.name + ` WHERE ` + condition + ` LIMIT $2`, query
	}
	return lookFirst(index, condition, q, someRows, "9223372036854775807", "$2"), query
}

// lookFirst is how PostgreSQL finds the newest rows. Its index gives all matches or none, so that a word that is in every
// message costs most, and the table in the order of numbers would be read to its end for a rare one. So it looks at the
// newest rows first, and asks the index if they are not enough.
func lookFirst(index *Table, condition string, q TermQuery, rows int, below, limit string) string {
	terms := 1
	for _, list := range q {
		terms += len(list)
	}
	// "+ 0" keeps the index of numbers out of it.
	return fmt.Sprintf(`WITH a AS (SELECT rowid FROM (SELECT rowid, terms FROM %[1]s WHERE rowid < %[4]s ORDER BY rowid DESC LIMIT %[2]d) newest
			WHERE %[3]s ORDER BY rowid DESC LIMIT %[5]s),
		n AS (SELECT count(*) AS n FROM a)
		SELECT rowid AS id FROM a WHERE (SELECT n FROM n) = %[5]s
		UNION ALL
		(SELECT rowid FROM %[1]s WHERE (SELECT n FROM n) < %[5]s AND %[3]s AND rowid + 0 < %[4]s ORDER BY rowid + 0 DESC LIMIT %[5]s)`,
		index.name, roundDown(min(rows, comparedTerms/terms)), condition, below, limit)
}

// roundDown returns the power of two that is not greater, so that there are few texts of statements.
func roundDown(n int) int { return 1 << (bits.Len(uint(max(n, 1))) - 1) }
