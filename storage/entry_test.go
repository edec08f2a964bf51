package storage

import (
	"bytes"
	"errors"
	"testing"
)

func TestEntries(t *testing.T) {
	table := DeclareTable("things", Put, Key("a", Int), Col("b", Bytes), Col("c", Bytes), Col("d", Bool), Col("e", Bool), Col("f", Int), Col("g", Int))
	u := &Unit{Positions: 2}
	u.Add(table, Pos(1), "text", []byte{0, 255}, true, false, nil, 7)
	u.Add(table, int64(-5), "", []byte(nil), nil, nil, Pos(2), int64(1)<<62)
	entry := makeEntry(u, 100)
	got, err := readEntry(entry)
	if err != nil {
		t.Fatal(err)
	}
	want := [][]any{
		{int64(101), []byte("text"), []byte{0, 255}, true, false, nil, int64(7)},
		{int64(-5), []byte{}, nil, nil, nil, int64(102), int64(1) << 62},
	}
	if got.Positions != 2 || len(got.steps) != len(want) {
		t.Fatalf("read %d positions and %d rows", got.Positions, len(got.steps))
	}
	for i, s := range got.steps {
		if s.table.spec != table.spec {
			t.Errorf("row %d is of another table", i)
		}
		for k, v := range s.values {
			b, isBytes := v.([]byte)
			w, _ := want[i][k].([]byte)
			if isBytes && (w == nil || !bytes.Equal(b, w)) || !isBytes && v != want[i][k] {
				t.Errorf("row %d, column %d: %v, want %v", i, k, v, want[i][k])
			}
		}
	}
	for n := range len(entry) {
		if _, err := readEntry(entry[:n]); !errors.Is(err, errEntry) {
			t.Errorf("the first %d bytes are read: %v", n, err)
		}
	}
	if _, err := readEntry(append(entry, 0)); !errors.Is(err, errEntry) {
		t.Errorf("more than an entry is read: %v", err)
	}
}

// TestTableOfAnotherProgram reads a declaration that this one does not have.
func TestTableOfAnotherProgram(t *testing.T) {
	columns := []Column{Key("k", Bytes), Col("v", Int)}
	table, err := tableOf([]byte(tableSpec("gone", InsertIgnore, columns)))
	if err != nil {
		t.Fatal(err)
	}
	if want := DeclareTable("gone", InsertIgnore, columns...); table.insertSQL != want.insertSQL || table.deleteSQL != want.deleteSQL {
		t.Errorf("%s, want %s", table.insertSQL, want.insertSQL)
	}
}
