package mediaapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/tus/tusd/v2/pkg/handler"
	"github.com/tus/tusd/v2/pkg/memorylocker"
	"golang.org/x/exp/slog"

	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/mediaapi/blob"
	"github.com/myelin-im/myelin/storage"
)

// resumable is where uploads in pieces go on, by the tus protocol (https://tus.io/protocols/resumable-upload): the URI is
// made with POST /create, POST here tells the length, PATCH sends a piece, HEAD tells how much has arrived, DELETE
// gives up.
const resumable = "/_matrix/client/unstable/im.myelin.tus/upload"

// partials keeps what has arrived of uploads that may go on, a file each, and what they will be, another.
type partials struct {
	api    *API
	folder string
}

// newTus makes the handler of the protocol.
func (a *API) newTus() (*handler.UnroutedHandler, error) {
	p := &partials{a, filepath.Join(a.Folder, "partial")}
	if err := os.MkdirAll(p.folder, 0o700); err != nil {
		return nil, fmt.Errorf("make a folder for partial uploads: %w", err)
	}
	a.partial = p
	composer := handler.NewStoreComposer()
	composer.UseCore(p)
	composer.UseTerminater(p)
	composer.UseLocker(memorylocker.New())
	return handler.NewUnroutedHandler(handler.Config{
		StoreComposer: composer, MaxSize: a.MaxUpload, BasePath: resumable + "/" + a.ServerName + "/", RespectForwardedHeaders: true,
		DisableDownload: true, Cors: &handler.CorsConfig{Disable: true}, Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
		PreUploadCreateCallback: func(hook handler.HookEvent) (handler.HTTPResponse, handler.FileInfoChanges, error) {
			u, _ := hook.Context.Value(resumableKey{}).(resumableUpload)
			return handler.HTTPResponse{}, handler.FileInfoChanges{ID: u.id, Storage: map[string]string{"user": u.user}}, nil
		},
	})
}

// resumableKey is the key of the upload in the context of a request.
type resumableKey struct{}

type resumableUpload struct{ id, user string }

// resume serves all methods of the protocol.
func (a *API) resume(ctx context.Context, by *httpapi.Caller, w http.ResponseWriter, r *http.Request) error {
	u := uri{r.PathValue("serverName"), r.PathValue("mediaId")}
	rec, err := a.pending(ctx, by, u)
	if err != nil {
		return err
	}
	if r.Method == http.MethodPost {
		if err := a.checkQuota(ctx, by.UserID, 0); err != nil {
			return err
		}
	}
	serve := map[string]http.HandlerFunc{
		"POST": a.tus.PostFile, "HEAD": a.tus.HeadFile, "PATCH": a.tus.PatchFile, "DELETE": a.tus.DelFile,
	}[r.Method]
	if serve == nil {
		return mxerr.Unrecognized(http.StatusMethodNotAllowed)
	}
	if err := a.prolong(ctx, rec); err != nil {
		return err
	}
	r = r.WithContext(context.WithValue(ctx, resumableKey{}, resumableUpload{u.id, by.UserID}))
	path := *r.URL
	path.Path = "/" + u.id // the library takes all of it for the name
	r.URL = &path
	w.Header().Set("Access-Control-Expose-Headers", "Location, Tus-Resumable, Upload-Offset, Upload-Length")
	a.tus.Middleware(serve).ServeHTTP(w, r)
	// The library leaves its deadlines on the connection, which others will use.
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Time{})
	_ = control.SetWriteDeadline(time.Time{})
	return nil
}

// prolong lets an upload that goes on take as long as a new one. It is written once in a while.
func (a *API) prolong(ctx context.Context, rec *record) error {
	until := a.ms() + a.PendingFor.Milliseconds()
	if until-rec.expires < a.PendingFor.Milliseconds()/10 {
		return nil
	}
	return a.db.Write(ctx, func(tx *storage.Tx) error {
		_, err := tx.Exec(`UPDATE media SET expires = $1 WHERE origin = $2 AND id = $3 AND blob IS NULL AND expires < $1`, until, rec.origin, rec.id)
		return err
	})
}

// partial is an upload that may go on.
type partial struct {
	store *partials
	info  handler.FileInfo
}

func (p *partials) path(id string) (string, error) {
	if !isMediaID(id) {
		return "", handler.ErrNotFound
	}
	return filepath.Join(p.folder, id), nil
}

// NewUpload starts an upload of a known length, over what a crash may have left of one.
func (p *partials) NewUpload(ctx context.Context, info handler.FileInfo) (handler.Upload, error) {
	path, err := p.path(info.ID)
	if err != nil {
		return nil, err
	}
	switch _, err := p.GetUpload(ctx, info.ID); {
	case err == nil:
		return nil, handler.NewError("ERR_EXISTS", "the upload has begun already", http.StatusConflict)
	case !errors.Is(err, handler.ErrNotFound):
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600) // #nosec G304: the path is made of a checked id
	if err == nil {
		err = f.Close()
	}
	var raw []byte
	if err == nil {
		raw, err = json.Marshal(info)
	}
	if err == nil {
		err = os.WriteFile(path+".json", raw, 0o600)
	}
	if err != nil {
		return nil, p.failed("start an upload", errors.Join(err, p.remove(info.ID)))
	}
	return &partial{p, info}, nil
}

// failed logs what is not for clients.
func (p *partials) failed(what string, err error) error {
	p.api.log.WithError(err).Error("could not " + what)
	if blob.IsFull(err) || errors.Is(err, storage.ErrFull) {
		return answered(errFull)
	}
	return handler.NewError("ERR_INTERNAL", "the upload could not be stored", http.StatusInternalServerError)
}

// answered is an error of Matrix in the protocol.
func answered(e *mxerr.Error) error {
	h := handler.NewError(e.Code, e.Text, e.Status)
	if e.RetryAfter > 0 {
		h.HTTPResponse.Header["Retry-After"] = strconv.Itoa(int(math.Ceil(e.RetryAfter.Seconds())))
	}
	return h
}

// GetUpload finds an upload. One of which a crash has left a part alone is not found, and so begins anew.
func (p *partials) GetUpload(_ context.Context, id string) (handler.Upload, error) {
	path, err := p.path(id)
	if err != nil {
		return nil, err
	}
	raw, err := os.ReadFile(path + ".json") // #nosec G304: the path is made of a checked id
	var file os.FileInfo
	if err == nil {
		file, err = os.Stat(path)
	}
	u := &partial{store: p}
	if errors.Is(err, fs.ErrNotExist) || err == nil && json.Unmarshal(raw, &u.info) != nil {
		return nil, handler.ErrNotFound
	}
	if err != nil {
		return nil, p.failed("find an upload", err)
	}
	u.info.ID, u.info.Offset = id, file.Size()
	return u, nil
}

// AsTerminatableUpload returns an upload that can be given up.
func (p *partials) AsTerminatableUpload(u handler.Upload) handler.TerminatableUpload {
	return u.(*partial)
}

// remove removes what has arrived of an upload.
func (p *partials) remove(id string) error {
	path, err := p.path(id)
	if err != nil {
		return err
	}
	var errs []error
	for _, file := range []string{path, path + ".json"} {
		if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// WriteChunk appends a piece and flushes it to the disk: what a client is told has arrived need not be sent again.
func (u *partial) WriteChunk(_ context.Context, offset int64, src io.Reader) (int64, error) {
	path, err := u.store.path(u.info.ID)
	if err != nil {
		return 0, err
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0o600) // #nosec G304: the path is made of a checked id
	if err != nil {
		return 0, u.store.failed("open an upload", err)
	}
	defer f.Close()
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		return 0, u.store.failed("find the end of an upload", err)
	}
	buf := make([]byte, 128<<10)
	n, err := io.CopyBuffer(struct{ io.Writer }{f}, struct{ io.Reader }{src}, buf)
	u.info.Offset = offset + n
	if syncErr := f.Sync(); syncErr != nil {
		return 0, u.store.failed("flush an upload", errors.Join(err, syncErr))
	}
	if blob.IsFull(err) {
		err = u.store.failed("write an upload", err)
	}
	return n, err
}

// GetInfo tells how far it is.
func (u *partial) GetInfo(context.Context) (handler.FileInfo, error) { return u.info, nil }

// GetReader is not offered: what is complete is downloaded like any media.
func (u *partial) GetReader(context.Context) (io.ReadCloser, error) {
	return nil, handler.ErrNotImplemented
}

// FinishUpload gives the URI its content.
func (u *partial) FinishUpload(ctx context.Context) error {
	a := u.store.api
	path, err := u.store.path(u.info.ID)
	if err != nil {
		return err
	}
	name, err := fileName(u.info.MetaData["filename"])
	if err != nil {
		name = nil
	}
	s, err := a.area.Adopt(path)
	if err != nil {
		return u.store.failed("finish an upload", err)
	}
	defer s.Close()
	by := &httpapi.Caller{UserID: u.info.Storage["user"]}
	err = a.complete(ctx, by, uri{a.ServerName, u.info.ID}, s, name, u.info.MetaData["filetype"])
	if removed := u.store.remove(u.info.ID); removed != nil {
		a.log.WithError(removed).Warn("could not remove a partial upload")
	}
	if e := mxerr.As(err); e != nil {
		return answered(e)
	}
	if err != nil {
		return u.store.failed("finish an upload", err)
	}
	return nil
}

// Terminate gives up.
func (u *partial) Terminate(context.Context) error {
	if err := u.store.remove(u.info.ID); err != nil {
		return u.store.failed("remove an upload", err)
	}
	return nil
}
