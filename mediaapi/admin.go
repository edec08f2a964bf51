package mediaapi

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"slices"
	"strconv"

	"github.com/myelin-im/myelin/accounts"
	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/internal/ratelimit"
	"github.com/myelin-im/myelin/storage"
)

// adminEndpoints have the paths and members of Synapse's admin API, which tools of operators know. What that does not
// have is below /_myelin.
func (a *API) adminEndpoints() []httpapi.Endpoint {
	const (
		v1    = "/_synapse/admin/v1"
		own   = "/_myelin/admin/v1/media"
		admin = httpapi.Admin
		class = ratelimit.Admin
	)
	return []httpapi.Endpoint{
		httpapi.New("POST", v1+"/media/quarantine/{serverName}/{mediaId}", admin, class, a.quarantineOne),
		httpapi.New("POST", v1+"/media/unquarantine/{serverName}/{mediaId}", admin, class, a.unquarantineOne),
		httpapi.New("POST", v1+"/user/{userId}/media/quarantine", admin, class, a.quarantineUser),
		httpapi.New("POST", v1+"/room/{roomId}/media/quarantine", admin, class, a.quarantineRoom),
		httpapi.New("POST", v1+"/quarantine_media/{roomId}", admin, class, a.quarantineRoom),
		httpapi.New("POST", v1+"/media/protect/{mediaId}", admin, class, a.protect),
		httpapi.New("POST", v1+"/media/unprotect/{mediaId}", admin, class, a.unprotect),
		httpapi.New("GET", v1+"/room/{roomId}/media", admin, class, a.roomMedia),
		httpapi.New("GET", v1+"/media/{serverName}/{mediaId}", admin, class, a.mediaInfo),
		httpapi.New("DELETE", v1+"/media/{serverName}/{mediaId}", admin, class, a.deleteOne),
		httpapi.New("POST", v1+"/media/delete", admin, class, a.deleteMany),
		httpapi.New("POST", v1+"/purge_media_cache", admin, class, a.purgeCache),
		httpapi.New("GET", v1+"/users/{userId}/media", admin, class, a.userMedia),
		httpapi.New("DELETE", v1+"/users/{userId}/media", admin, class, a.deleteUserMedia),
		httpapi.New("POST", own+"/block", admin, class, a.block),
		httpapi.New("POST", own+"/unblock", admin, class, a.unblock),
		httpapi.New("POST", own+"/orphans", admin, class, a.orphans),
	}
}

type mediaParams struct {
	Server string `path:"serverName"`
	ID     string `path:"mediaId"`
}

type idParam struct {
	ID string `path:"mediaId"`
}

type userParam struct {
	UserID string `path:"userId"`
}

type roomParam struct {
	RoomID string `path:"roomId"`
}

type quarantined struct {
	N int64 `json:"num_quarantined"`
}

// change runs an UPDATE of media and returns how many rows it changed.
func (a *API) change(ctx context.Context, update string, args ...any) (n int64, err error) {
	err = a.db.Write(ctx, func(tx *storage.Tx) (err error) {
		n, err = tx.Exec(`UPDATE media SET `+update, args...)
		return err
	})
	return n, err
}

const quarantineIt = `quarantined = $1 WHERE quarantined IS NULL AND NOT safe AND `

func (a *API) quarantineOne(ctx context.Context, by *httpapi.Caller, in *mediaParams) (*httpapi.Empty, error) {
	_, err := a.change(ctx, quarantineIt+`origin = $2 AND id = $3`, by.UserID, in.Server, in.ID)
	return nil, err
}

func (a *API) unquarantineOne(ctx context.Context, _ *httpapi.Caller, in *mediaParams) (*httpapi.Empty, error) {
	_, err := a.change(ctx, `quarantined = NULL WHERE origin = $1 AND id = $2`, in.Server, in.ID)
	return nil, err
}

func (a *API) quarantineUser(ctx context.Context, by *httpapi.Caller, in *userParam) (*quarantined, error) {
	n, err := a.change(ctx, quarantineIt+`uploader = $2`, by.UserID, in.UserID)
	return &quarantined{n}, err
}

// quarantineRoom hides everything that the events of a room name, local or fetched.
func (a *API) quarantineRoom(ctx context.Context, by *httpapi.Caller, in *roomParam) (*quarantined, error) {
	list, err := a.named(ctx, in.RoomID)
	if err != nil {
		return nil, err
	}
	out := &quarantined{}
	for some := range slices.Chunk(list, batch) {
		n := int64(0)
		err := a.db.Write(ctx, func(tx *storage.Tx) error {
			n = 0
			for _, u := range some {
				changed, err := tx.Exec(`UPDATE media SET `+quarantineIt+`origin = $2 AND id = $3`, by.UserID, u.origin, u.id)
				if n += changed; err != nil {
					return err
				}
			}
			return nil
		})
		if out.N += n; err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (a *API) protect(ctx context.Context, _ *httpapi.Caller, in *idParam) (*httpapi.Empty, error) {
	_, err := a.change(ctx, `safe = $1 WHERE origin = $2 AND id = $3`, true, a.ServerName, in.ID)
	return nil, err
}

func (a *API) unprotect(ctx context.Context, _ *httpapi.Caller, in *idParam) (*httpapi.Empty, error) {
	_, err := a.change(ctx, `safe = $1 WHERE origin = $2 AND id = $3`, false, a.ServerName, in.ID)
	return nil, err
}

type roomMedia struct {
	Local  []string `json:"local"`
	Remote []string `json:"remote"`
}

func (a *API) roomMedia(ctx context.Context, _ *httpapi.Caller, in *roomParam) (*roomMedia, error) {
	list, err := a.named(ctx, in.RoomID)
	if err != nil {
		return nil, err
	}
	out := &roomMedia{[]string{}, []string{}}
	for _, u := range list {
		if u.origin == a.ServerName {
			out.Local = append(out.Local, u.String())
		} else {
			out.Remote = append(out.Remote, u.String())
		}
	}
	return out, nil
}

// mediaRow is how media is described to administrators.
type mediaRow struct {
	Origin      string  `json:"media_origin,omitempty"`
	ID          string  `json:"media_id"`
	UserID      string  `json:"user_id,omitempty"`
	Type        string  `json:"media_type"`
	Length      int64   `json:"media_length"`
	Name        *string `json:"upload_name"`
	Created     int64   `json:"created_ts"`
	Accessed    int64   `json:"last_access_ts"`
	Quarantined *string `json:"quarantined_by"`
	Safe        bool    `json:"safe_from_quarantine"`
	Hash        string  `json:"sha256,omitempty"`
}

func rowOf(r *record) mediaRow {
	row := mediaRow{r.origin, r.id, r.uploader, r.typ, r.size, r.name, r.created, r.accessed, r.quarantined, r.safe, ""}
	if r.blob != "" {
		row.Hash = r.blob[:64]
	}
	return row
}

type mediaInfo struct {
	Info mediaRow `json:"media_info"`
}

func (a *API) mediaInfo(ctx context.Context, _ *httpapi.Caller, in *mediaParams) (*mediaInfo, error) {
	rec, err := a.lookUp(ctx, uri{in.Server, in.ID})
	if err != nil {
		return nil, err
	}
	if rec == nil {
		return nil, errNotFound
	}
	return &mediaInfo{rowOf(rec)}, nil
}

type deleted struct {
	IDs   []string `json:"deleted_media"`
	Total int      `json:"total"`
}

func deletedOf(list []uri) *deleted {
	out := &deleted{IDs: []string{}, Total: len(list)}
	for _, u := range list {
		out.IDs = append(out.IDs, u.id)
	}
	return out
}

func (a *API) deleteOne(ctx context.Context, _ *httpapi.Caller, in *mediaParams) (*deleted, error) {
	list, err := a.remove(ctx, `origin = $1 AND id = $2`, in.Server, in.ID)
	if err == nil && len(list) == 0 {
		err = errNotFound
	}
	if err != nil {
		return nil, err
	}
	return deletedOf(list), nil
}

type deleteManyRequest struct {
	Before       *int64 `query:"before_ts"`
	Larger       int64  `query:"size_gt" min:"0"`
	KeepProfiles *bool  `query:"keep_profiles"`
}

// deleteMany removes local media that was not used since a time; unless told otherwise, not what profiles and rooms
// show.
func (a *API) deleteMany(ctx context.Context, _ *httpapi.Caller, in *deleteManyRequest) (*deleted, error) {
	if err := a.checkBefore(in.Before); err != nil {
		return nil, err
	}
	const condition = `origin = $1 AND accessed < $2 AND size > $3 AND NOT safe AND quarantined IS NULL AND blob IS NOT NULL`
	if in.KeepProfiles != nil && !*in.KeepProfiles {
		list, err := a.remove(ctx, condition, a.ServerName, *in.Before, in.Larger)
		return deletedOf(list), err
	}
	list, err := a.unless(ctx, a.shown, condition, a.ServerName, *in.Before, in.Larger)
	if err != nil {
		return nil, err
	}
	removed, err := a.removeAll(ctx, list)
	return deletedOf(removed), err
}

// checkBefore refuses times that look like seconds, which would delete everything or nothing.
func (a *API) checkBefore(before *int64) error {
	switch {
	case before == nil:
		return mxerr.MissingParam("Missing parameter before_ts")
	case *before < 30_000_000_000 || *before > a.ms():
		return mxerr.InvalidParam("before_ts is not a time of the past in milliseconds")
	}
	return nil
}

// removeAll removes some media.
func (a *API) removeAll(ctx context.Context, list []*record) (removed []uri, err error) {
	for _, r := range list {
		some, err := a.remove(ctx, `origin = $1 AND id = $2`, r.origin, r.id)
		if removed = append(removed, some...); err != nil {
			return removed, err
		}
	}
	return removed, nil
}

type purgeRequest struct {
	Before *int64 `query:"before_ts"`
}

type purged struct {
	N int `json:"deleted"`
}

// purgeCache removes media of other servers that was not used since a time. Who wants it gets it from there again.
func (a *API) purgeCache(ctx context.Context, _ *httpapi.Caller, in *purgeRequest) (*purged, error) {
	if err := a.checkBefore(in.Before); err != nil {
		return nil, err
	}
	list, err := a.remove(ctx, `origin <> $1 AND accessed < $2 AND NOT safe AND quarantined IS NULL`, a.ServerName, *in.Before)
	return &purged{len(list)}, err
}

// orders are what lists can be ordered by, by the names of Synapse.
var orders = map[string]string{
	"created_ts": "created", "media_id": "id", "upload_name": "name", "last_access_ts": "accessed", "media_length": "size",
	"media_type": "type", "quarantined_by": "quarantined", "safe_from_quarantine": "safe",
}

type userMediaRequest struct {
	UserID string `path:"userId"`
	From   int64  `query:"from" min:"0"`
	Limit  int64  `query:"limit" default:"100" min:"0" max:"1000"`
	Order  string `query:"order_by" default:"created_ts"`
	Dir    string `query:"dir" enum:"f|b"`
}

// sort is the end of the SQL of a page.
func (in *userMediaRequest) sort() (string, error) {
	column := orders[in.Order]
	if column == "" {
		return "", mxerr.InvalidParam("order_by is not a known member")
	}
	dir := " DESC"
	if in.Dir == "f" || in.Dir == "" && in.Order != "created_ts" {
		dir = ""
	}
	return ` ORDER BY ` + column + dir + `, id LIMIT ` + strconv.FormatInt(in.Limit, 10) + ` OFFSET ` + strconv.FormatInt(in.From, 10), nil
}

type userMedia struct {
	Media []mediaRow `json:"media"`
	Next  int64      `json:"next_token,omitempty"`
	Total int64      `json:"total"`
}

const ofUser = `uploader = $1 AND blob IS NOT NULL`

func (a *API) userMedia(ctx context.Context, _ *httpapi.Caller, in *userMediaRequest) (*userMedia, error) {
	sort, err := in.sort()
	if err != nil {
		return nil, err
	}
	out := &userMedia{}
	err = a.db.Read(ctx, func(tx *storage.Tx) error {
		out.Media = []mediaRow{}
		if _, err := tx.Get(`SELECT count(*) FROM media WHERE `+ofUser, []any{in.UserID}, &out.Total); err != nil {
			return err
		}
		list, err := recordsOf(tx, ofUser+sort, in.UserID)
		for _, r := range list {
			out.Media = append(out.Media, rowOf(r))
		}
		return err
	})
	if next := in.From + int64(len(out.Media)); next < out.Total {
		out.Next = next
	}
	return out, err
}

// deleteUserMedia removes a page of what userMedia lists.
func (a *API) deleteUserMedia(ctx context.Context, _ *httpapi.Caller, in *userMediaRequest) (*deleted, error) {
	sort, err := in.sort()
	if err != nil {
		return nil, err
	}
	var list []*record
	err = a.db.Read(ctx, func(tx *storage.Tx) (err error) {
		list, err = recordsOf(tx, ofUser+sort, in.UserID)
		return err
	})
	if err != nil {
		return nil, err
	}
	removed, err := a.removeAll(ctx, list)
	return deletedOf(removed), err
}

type blockRequest struct {
	Hash string `json:"sha256"`
	URI  string `json:"content_uri"`
}

// hashIn finds the hash that a request means.
func (a *API) hashIn(ctx context.Context, in *blockRequest) ([]byte, error) {
	if in.Hash != "" {
		hash, err := hex.DecodeString(in.Hash)
		if err != nil || len(hash) != 32 {
			return nil, mxerr.InvalidParam("sha256 is not 64 hexadecimal digits")
		}
		return hash, nil
	}
	u, ok := parseURI(in.URI)
	if !ok {
		return nil, mxerr.MissingParam("sha256 or content_uri is needed")
	}
	rec, err := a.lookUp(ctx, u)
	switch {
	case err != nil:
		return nil, err
	case rec == nil || rec.blob == "":
		return nil, errNotFound
	}
	return hashOf(rec.blob), nil
}

type blocked struct {
	Hash string `json:"sha256"`
	N    int64  `json:"num_quarantined"`
}

// block keeps content from being uploaded or fetched, by its hash, and quarantines what is there of it.
func (a *API) block(ctx context.Context, by *httpapi.Caller, in *blockRequest) (*blocked, error) {
	hash, err := a.hashIn(ctx, in)
	if err != nil {
		return nil, err
	}
	out := &blocked{Hash: hex.EncodeToString(hash)}
	err = a.db.Write(ctx, func(tx *storage.Tx) error {
		if err := lockBlob(tx, hash); err != nil {
			return err
		}
		_, err := tx.Exec(`INSERT INTO media_blocked (hash, by, at) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING`, hash, by.UserID, a.ms())
		if err == nil {
			out.N, err = tx.Exec(`UPDATE media SET quarantined = $1 WHERE quarantined IS NULL AND blob = (SELECT key FROM media_blobs WHERE hash = $2)`, by.UserID, hash)
		}
		return err
	})
	return out, err
}

// unblock lets content in again. What was quarantined stays so.
func (a *API) unblock(ctx context.Context, _ *httpapi.Caller, in *blockRequest) (*httpapi.Empty, error) {
	hash, err := a.hashIn(ctx, in)
	if err != nil {
		return nil, err
	}
	return nil, a.db.Write(ctx, func(tx *storage.Tx) error {
		_, err := tx.Exec(`DELETE FROM media_blocked WHERE hash = $1`, hash)
		return err
	})
}

type orphansRequest struct {
	Before *int64 `json:"before_ts"`
	Delete bool   `json:"delete"`
	Secret bool   `json:"include_encrypted"`
}

type orphansResponse struct {
	Media   []mediaRow `json:"media"`
	Total   int        `json:"total"`
	Bytes   int64      `json:"bytes"`
	Deleted int        `json:"deleted"`
}

// maxListed bounds how many orphans are described.
const maxListed = 1000

// orphans finds local media, uploaded before a time, that no event names and no profile shows, and deletes it if told so.
// The events of encrypted rooms cannot be read: their files are octets, which are left out unless asked for.
func (a *API) orphans(ctx context.Context, _ *httpapi.Caller, in *orphansRequest) (*orphansResponse, error) {
	if err := a.checkBefore(in.Before); err != nil {
		return nil, err
	}
	condition := `origin = $1 AND created < $2 AND purpose = 0 AND NOT safe AND quarantined IS NULL AND blob IS NOT NULL`
	args := []any{a.ServerName, *in.Before}
	if !in.Secret {
		condition += ` AND type <> $3`
		args = append(args, octets)
	}
	list, err := a.unless(ctx, a.used, condition, args...)
	if err != nil {
		return nil, err
	}
	out := &orphansResponse{Media: []mediaRow{}, Total: len(list)}
	for _, r := range list {
		out.Bytes += r.size
		if len(out.Media) < maxListed {
			out.Media = append(out.Media, rowOf(r))
		}
	}
	if in.Delete {
		removed, err := a.removeAll(ctx, list)
		if out.Deleted = len(removed); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// unless lists the media that a condition tells, without what use says is in use.
func (a *API) unless(ctx context.Context, use func(ctx context.Context, users []string) (map[uri]bool, error), condition string, args ...any) ([]*record, error) {
	var list []*record
	err := a.db.Read(ctx, func(tx *storage.Tx) (err error) {
		list, err = recordsOf(tx, condition, args...)
		return err
	})
	if err != nil || len(list) == 0 {
		return nil, err
	}
	var users []string
	for _, r := range list {
		users = append(users, r.uploader)
	}
	slices.Sort(users)
	inUse, err := use(ctx, slices.Compact(users))
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(list, func(r *record) bool { return inUse[r.uri] }), nil
}

// avatars is what the profiles of users show.
func (a *API) avatars(ctx context.Context, users []string) (map[uri]bool, error) {
	found := map[uri]bool{}
	err := a.db.Read(ctx, func(tx *storage.Tx) error {
		for _, user := range users {
			if user == "" {
				continue
			}
			_, avatar, err := accounts.MemberProfile(tx, user)
			if err != nil {
				return err
			}
			if u, ok := parseURI(avatar); ok {
				found[u] = true
			}
		}
		return nil
	})
	return found, err
}

// shown is what the profiles of users and the state of rooms show.
func (a *API) shown(ctx context.Context, users []string) (map[uri]bool, error) {
	found, err := a.avatars(ctx, users)
	if err != nil {
		return nil, err
	}
	return found, a.eachEvent(ctx, "", func(event []byte, state bool) error {
		if state {
			eachURI(event, func(u uri) { found[u] = true })
		}
		return nil
	})
}

// used is what is shown and what any event names.
func (a *API) used(ctx context.Context, users []string) (map[uri]bool, error) {
	found, err := a.shown(ctx, users)
	if err != nil {
		return nil, err
	}
	return found, a.eachEvent(ctx, "", func(event []byte, _ bool) error {
		eachURI(event, func(u uri) { found[u] = true })
		return nil
	})
}

// named lists what the events of a room name.
func (a *API) named(ctx context.Context, roomID string) ([]uri, error) {
	seen, list := map[uri]bool{}, []uri(nil)
	err := a.eachEvent(ctx, roomID, func(event []byte, _ bool) error {
		eachURI(event, func(u uri) {
			if !seen[u] {
				seen[u], list = true, append(list, u)
			}
		})
		return nil
	})
	return list, err
}

// eachEvent goes through the events of a room, or of all.
func (a *API) eachEvent(ctx context.Context, roomID string, fn func(event []byte, state bool) error) error {
	if a.events == nil {
		return errors.New("media: there are no events to look at")
	}
	return a.events(ctx, roomID, fn)
}

// parseURI reads an mxc:// URI.
func parseURI(text string) (uri, bool) {
	var found uri
	ok := false
	quoted, err := json.Marshal(text)
	if err != nil {
		return found, false
	}
	eachURI(quoted, func(u uri) { found, ok = u, u.String() == text })
	return found, ok
}
