package storage

import (
	"strconv"
	"strings"
)

// Text is a string bound to a TEXT column (full-text search). All other strings and byte slices bind
// to BYTEA, which holds any byte and sorts bytewise on both databases; PostgreSQL refuses NUL in TEXT.
type Text string

// In builds the list "($from,$from+1,…)" of n placeholders for an IN clause. n must be at least 1.
func In(n, from int) string {
	var b strings.Builder
	b.Grow(5*n + 2)
	for i := range n {
		if i == 0 {
			b.WriteString("($")
		} else {
			b.WriteString(",$")
		}
		b.WriteString(strconv.Itoa(from + i))
	}
	b.WriteByte(')')
	return b.String()
}

// sqlitePlaceholders rewrites $N to ?N. SQLite knows $1 too, but as a name, numbered by its first
// appearance. Quoted text and comments are left alone.
func sqlitePlaceholders(sql string) string {
	if !strings.Contains(sql, "$") {
		return sql
	}
	out := make([]byte, 0, len(sql))
	for i := 0; i < len(sql); i++ {
		switch c := sql[i]; {
		case c == '\'' || c == '"':
			end := strings.IndexByte(sql[i+1:], c)
			if end < 0 {
				return string(append(out, sql[i:]...))
			}
			out = append(out, sql[i:i+end+2]...)
			i += end + 1
		case c == '-' && strings.HasPrefix(sql[i:], "--"):
			end := strings.IndexByte(sql[i:], '\n')
			if end < 0 {
				return string(out)
			}
			i += end
			out = append(out, '\n')
		case c == '$' && i+1 < len(sql) && '0' <= sql[i+1] && sql[i+1] <= '9':
			out = append(out, '?')
		default:
			out = append(out, c)
		}
	}
	return string(out)
}
