package storage

import (
	"embed"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"sort"
	"strconv"
	"strings"
)

//go:embed migrations/*.sql
var ownMigrations embed.FS

var ownSchema = Schema{Feature: "storage", FS: ownMigrations}

// Schema is the set of migrations of one feature: files migrations/NNNN_name.sql, numbered from 0001
// without gaps, applied once each, never edited after release.
type Schema struct {
	// Feature names the owner of the tables; it is recorded in the database.
	Feature string
	// FS holds the folder "migrations".
	FS fs.FS
}

// migration is one step of a schema.
type migration struct {
	version int64
	name    string
	sql     string
}

// steps reads and checks the numbered files.
func (s Schema) steps() ([]migration, error) {
	names, err := fs.Glob(s.FS, "migrations/*.sql")
	if err != nil {
		return nil, fmt.Errorf("schema %s: %w", s.Feature, err)
	}
	sort.Strings(names)
	var out []migration
	for i, name := range names {
		number, _, _ := strings.Cut(path.Base(name), "_")
		version, err := strconv.ParseInt(number, 10, 64)
		if err != nil || version != int64(i+1) {
			return nil, fmt.Errorf("schema %s: %s: want number %04d", s.Feature, name, i+1)
		}
		text, err := fs.ReadFile(s.FS, name)
		if err != nil {
			return nil, fmt.Errorf("schema %s: %w", s.Feature, err)
		}
		out = append(out, migration{version, name, string(text)})
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("schema %s: no migrations", s.Feature)
	}
	return out, nil
}

// pending returns the steps after version have, or ErrNewer when have is beyond the last step.
func (s Schema) pending(have int64) ([]migration, error) {
	steps, err := s.steps()
	if err != nil {
		return nil, err
	}
	if have > int64(len(steps)) {
		return nil, fmt.Errorf("%w: schema %s is at version %d, this program knows %d", ErrNewer, s.Feature, have, len(steps))
	}
	return steps[have:], nil
}

// migrate applies what is pending of each schema, step by step.
func migrate(tx *Tx, schemas []Schema, apply func(feature string, step migration) error) error {
	for _, schema := range schemas {
		var have int64
		if _, err := tx.Get(`SELECT version FROM schema_versions WHERE feature = $1`, []any{schema.Feature}, &have); err != nil {
			return err
		}
		steps, err := schema.pending(have)
		if err != nil {
			return err
		}
		for _, step := range steps {
			if err := apply(schema.Feature, step); err != nil {
				return fmt.Errorf("schema %s: %s: %w", schema.Feature, step.name, err)
			}
		}
	}
	return nil
}

var (
	wordBytea  = regexp.MustCompile(`\bBYTEA\b`)
	wordBigint = regexp.MustCompile(`\bBIGINT\b`)
	markSQLite = regexp.MustCompile(`/\*\s*sqlite\s+(.*?)\*/`)
)

// translate turns the one SQL text of a migration into that of the dialect. A line "-- only: postgres"
// or "-- only: sqlite" keeps the next line for that dialect alone; /*sqlite …*/ is code on SQLite only.
// BYTEA is BLOB on SQLite, and BIGINT is INTEGER there, so that a BIGINT PRIMARY KEY is the row's id.
func translate(sql string, d Dialect) string {
	var out []string
	drop := false
	for line := range strings.SplitSeq(sql, "\n") {
		if only, ok := strings.CutPrefix(strings.TrimSpace(line), "-- only:"); ok {
			drop = strings.TrimSpace(only) != d.String()
			continue
		}
		if !drop {
			out = append(out, line)
		}
		drop = false
	}
	text := strings.Join(out, "\n")
	if d == SQLite {
		text = wordBytea.ReplaceAllString(text, "BLOB")
		text = wordBigint.ReplaceAllString(text, "INTEGER")
		text = markSQLite.ReplaceAllString(text, "$1")
	}
	return text
}
