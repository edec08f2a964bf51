package storage

import (
	"embed"
	"fmt"
	"io/fs"
	"path"
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
	feature string
	version int64
	name    string
	sql     string
}

// wrap says in which step an error happened.
func (m *migration) wrap(err error) error {
	return fmt.Errorf("schema %s: %s: %w", m.feature, m.name, err)
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
		out = append(out, migration{s.Feature, version, name, string(text)})
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

// pendingSteps returns what has to be applied, in order, to a database with a table of versions.
func pendingSteps(tx *Tx, schemas []Schema) ([]migration, error) {
	have := map[string]int64{}
	rows := tx.Query(`SELECT feature, version FROM schema_versions`)
	for rows.Next() {
		var feature string
		var version int64
		rows.Scan(&feature, &version)
		have[feature] = version
	}
	if err := rows.Close(); err != nil {
		return nil, err
	}
	var all []migration
	for _, schema := range schemas {
		steps, err := schema.pending(have[schema.Feature])
		if err != nil {
			return nil, err
		}
		all = append(all, steps...)
	}
	return all, nil
}

// noteVersion writes down that a step has been applied.
const noteVersion = `INSERT INTO schema_versions (feature, version) VALUES ($1, $2)
	ON CONFLICT (feature) DO UPDATE SET version = excluded.version`

// sqliteWords replaces the types that SQLite names otherwise. (They stand in capitals, and in no other word.)
var sqliteWords = strings.NewReplacer("BYTEA", "BLOB", "BIGINT", "INTEGER")

// uncomment turns /*sqlite …*/ into code.
func uncomment(sql string) string {
	const mark = "/*sqlite "
	var b strings.Builder
	for {
		before, rest, found := strings.Cut(sql, mark)
		b.WriteString(before)
		if !found {
			return b.String()
		}
		code, after, _ := strings.Cut(rest, "*/")
		b.WriteString(code)
		sql = after
	}
}

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
		text = uncomment(sqliteWords.Replace(text))
	}
	return text
}
