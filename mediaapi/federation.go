package mediaapi

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/mediaapi/blob"
)

// downloadForServer: server-server API v1.19, GET /media/download/{mediaId}.
func (a *API) downloadForServer(ctx context.Context, by *httpapi.Caller, w http.ResponseWriter, r *http.Request) error {
	rec, metadata, err := a.findLocal(ctx, by, r)
	if err != nil {
		return err
	}
	return a.serveParts(ctx, w, r, content{rec.blob, rec.typ, disposition(rec.typ, rec.name), true}, nil, metadata)
}

// thumbnailForServer: server-server API v1.19, GET /media/thumbnail/{mediaId}.
func (a *API) thumbnailForServer(ctx context.Context, by *httpapi.Caller, w http.ResponseWriter, r *http.Request) error {
	spec, err := specOf(r)
	if err != nil {
		return err
	}
	rec, metadata, err := a.findLocal(ctx, by, r)
	if err != nil {
		return err
	}
	t, err := a.thumbnailOf(ctx, rec, spec)
	if err != nil {
		return err
	}
	return a.serveParts(ctx, w, r, content{t.key, t.typ, t.disposition(), true}, t.data, metadata)
}

// findLocal returns the record of local media that another server asks for, and what that is to know of it.
func (a *API) findLocal(ctx context.Context, by *httpapi.Caller, r *http.Request) (*record, string, error) {
	req, err := parse(r, false)
	if err != nil {
		return nil, "", err
	}
	req.origin, req.remote, req.server = a.ServerName, false, by.Origin
	rec, err := a.find(ctx, req)
	if err == nil {
		a.touched.add(rec, a.ms())
	}
	return rec, metadataOf(req.restriction), err
}

// serveParts sends metadata and content, or where it is to be had.
func (a *API) serveParts(ctx context.Context, w http.ResponseWriter, r *http.Request, c content, data []byte, metadata string) error {
	var random [16]byte
	rand.Read(random[:])
	boundary := hex.EncodeToString(random[:])
	h := w.Header()
	h.Set("Content-Type", "multipart/mixed; boundary="+boundary)
	h.Set("Cache-Control", "no-store")
	head := "--" + boundary + "\r\nContent-Type: application/json\r\n\r\n" + metadata + "\r\n--" + boundary + "\r\n"
	end := "\r\n--" + boundary + "--\r\n"
	if data == nil {
		location, err := a.store.URL(ctx, c.key, blob.Link{Type: c.typ, Disposition: c.disposition, For: redirectFor})
		if err != nil {
			return err
		}
		if location != "" {
			_, err := io.WriteString(w, head+"Location: "+location+"\r\n\r\n"+end)
			return err
		}
	}
	body, size, err := a.body(ctx, c.key, data)
	if err != nil {
		return err
	}
	defer body.Close()
	head += fmt.Sprintf("Content-Type: %s\r\nContent-Disposition: %s\r\nContent-Length: %d\r\n\r\n", c.typ, c.disposition, size)
	h.Set("Content-Length", fmt.Sprint(int64(len(head)+len(end))+size))
	if r.Method == http.MethodHead {
		w.WriteHeader(http.StatusOK)
		return nil
	}
	if _, err := io.WriteString(w, head); err != nil {
		return err
	}
	if n, err := io.Copy(w, body); err != nil || n != size {
		return fmt.Errorf("send a blob to a server: %d of %d bytes: %w", n, size, err)
	}
	_, err = io.WriteString(w, end)
	return err
}

// body opens a blob, or wraps what was not kept as one, and says how long it is.
func (a *API) body(ctx context.Context, key string, data []byte) (io.ReadCloser, int64, error) {
	if data != nil {
		return io.NopCloser(bytes.NewReader(data)), int64(len(data)), nil
	}
	o, err := a.store.Open(ctx, key)
	if errors.Is(err, blob.ErrNotFound) {
		return nil, 0, errNotFound.With(err)
	}
	if err != nil {
		return nil, 0, err
	}
	size, err := o.Seek(0, io.SeekEnd)
	if err == nil {
		_, err = o.Seek(0, io.SeekStart)
	}
	if err != nil {
		return nil, 0, errors.Join(err, o.Close())
	}
	return o, size, nil
}
