package mediaapi

import (
	"context"
	"encoding/hex"
	"regexp"

	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/storage"
)

// uri is the identifier of a piece of media.
type uri struct {
	origin, id string
}

func (u uri) String() string { return "mxc://" + u.origin + "/" + u.id }

var mediaIDs = regexp.MustCompile(`^[A-Za-z0-9_-]+$`)

// isMediaID tells whether id has the characters of the specification. The bound is ours. (A bound within the expression
// makes compiling it, at every start, a hundred times as dear.)
func isMediaID(id string) bool { return len(id) <= 255 && mediaIDs.MatchString(id) }

var errNotFound = mxerr.NotFound("Media not found")

// purpose says why something is stored.
type purpose int64

const (
	forUser    purpose = 0
	forPreview purpose = 1
)

// record is a row of media.
type record struct {
	uri
	blob        string // the key; empty: not uploaded yet
	size        int64
	typ         string
	name        *string // nil: uploaded without one
	uploader    string
	created     int64
	expires     int64
	accessed    int64
	purpose     purpose
	open        bool
	quarantined *string
	safe        bool
}

const recordColumns = `origin, id, blob, size, type, name, uploader, created, expires, accessed, purpose, open, quarantined, safe`

// fields are where recordColumns are scanned to.
func (r *record) fields(blob **string) []any {
	return []any{&r.origin, &r.id, blob, &r.size, &r.typ, &r.name, &r.uploader, &r.created, &r.expires, &r.accessed, (*int64)(&r.purpose),
		&r.open, &r.quarantined, &r.safe}
}

// recordsOf reads records: the condition goes on after WHERE.
func recordsOf(tx *storage.Tx, condition string, args ...any) (list []*record, err error) {
	rows := tx.Query(`SELECT `+recordColumns+` FROM media WHERE `+condition, args...)
	for rows.Next() {
		r, blob := new(record), (*string)(nil)
		rows.Scan(r.fields(&blob)...)
		if blob != nil {
			r.blob = *blob
		}
		list = append(list, r)
	}
	return list, rows.Close()
}

// lookUp returns the record of a URI, nil if there is none.
func lookUp(tx *storage.Tx, u uri) (*record, error) {
	list, err := recordsOf(tx, `origin = $1 AND id = $2`, u.origin, u.id)
	if err != nil || len(list) == 0 {
		return nil, err
	}
	return list[0], nil
}

func (a *API) lookUp(ctx context.Context, u uri) (r *record, err error) {
	err = a.db.Read(ctx, func(tx *storage.Tx) (err error) {
		r, err = lookUp(tx, u)
		return err
	})
	return r, err
}

// put writes a record in place of what was known of its URI.
func (r *record) put(tx *storage.Tx) error {
	var blob *string
	if r.blob != "" {
		blob = &r.blob
	}
	_, err := tx.Exec(`INSERT INTO media (`+recordColumns+`) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)
		ON CONFLICT (origin, id) DO UPDATE SET blob = excluded.blob, size = excluded.size, type = excluded.type, name = excluded.name,
		created = excluded.created, expires = excluded.expires, accessed = excluded.accessed, open = excluded.open`,
		r.origin, r.id, blob, r.size, r.typ, r.name, r.uploader, r.created, r.expires, r.accessed, int64(r.purpose), r.open, r.quarantined, r.safe)
	return err
}

// hashOf is the SHA-256 with which a key begins.
func hashOf(key string) []byte {
	hash, err := hex.DecodeString(key[:64])
	if err != nil {
		return nil // keys are made by package blob
	}
	return hash
}
