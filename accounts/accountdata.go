package accounts

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/internal/ratelimit"
	"github.com/myelin-im/myelin/storage"
)

const (
	accountDataPath     = "/user/{userId}/account_data/{type}"
	roomAccountDataPath = "/user/{userId}/rooms/{roomId}/account_data/{type}"
	deletionPrefix      = "/_matrix/client/unstable/org.matrix.msc3391"
	v3                  = "/_matrix/client/v3"
)

func (a *API) accountDataEndpoints() []httpapi.Endpoint {
	const tags = v3 + "/user/{userId}/rooms/{roomId}/tags"
	return []httpapi.Endpoint{
		httpapi.New("GET", v3+accountDataPath, httpapi.User, ratelimit.Read, a.getAccountData),
		httpapi.New("PUT", v3+accountDataPath, httpapi.User, ratelimit.Account, a.putAccountData),
		httpapi.New("DELETE", deletionPrefix+accountDataPath, httpapi.User, ratelimit.Account, a.deleteAccountData),
		httpapi.New("GET", v3+roomAccountDataPath, httpapi.User, ratelimit.Read, a.getRoomAccountData),
		httpapi.New("PUT", v3+roomAccountDataPath, httpapi.User, ratelimit.Account, a.putRoomAccountData),
		httpapi.New("DELETE", deletionPrefix+roomAccountDataPath, httpapi.User, ratelimit.Account, a.deleteRoomAccountData),
		httpapi.New("GET", tags, httpapi.User, ratelimit.Read, a.getTags),
		httpapi.New("PUT", tags+"/{tag}", httpapi.User, ratelimit.Account, a.putTag),
		httpapi.New("DELETE", tags+"/{tag}", httpapi.User, ratelimit.Account, a.deleteTag),
	}
}

// Datum is one account data event of a user.
type Datum struct {
	// Room is the room it belongs to; empty for data outside rooms.
	Room string
	// Type is the event type.
	Type string
	// Content is a JSON object; {} also for what has been deleted (MSC3391).
	Content json.RawMessage
	// Pos is the log position of its last change.
	Pos int64
}

// AccountData returns all account data of a user, by room and type, without what was deleted. It may be newer than
// the position that an answer is for; what changed later is then told once more by AccountDataBetween, which does no
// harm, while what is left out now would be missing until it is set again.
func AccountData(tx *storage.Tx, userID string) ([]Datum, error) {
	return accountData(tx, `SELECT room_id, type, content, pos FROM account_data
		WHERE user_id = $1 AND content IS NOT NULL ORDER BY room_id, type`, userID)
}

// AccountDataBetween returns the account data of a user that last changed in (since, upto], by position, with what
// was deleted as {}.
func AccountDataBetween(tx *storage.Tx, userID string, since, upto int64) ([]Datum, error) {
	return accountData(tx, `SELECT room_id, type, content, pos FROM account_data
		WHERE user_id = $1 AND pos > $2 AND pos <= $3 ORDER BY pos, room_id, type`, userID, since, upto)
}

var emptyObject = json.RawMessage("{}")

func accountData(tx *storage.Tx, sql string, args ...any) ([]Datum, error) {
	var list []Datum
	rows := tx.Query(sql, args...)
	for rows.Next() {
		var d Datum
		rows.Scan(&d.Room, &d.Type, &d.Content, &d.Pos)
		if d.Content == nil {
			d.Content = emptyObject
		}
		list = append(list, d)
	}
	return list, rows.Close()
}

// AccountDatum returns the content of one account data event; roomID is empty for data outside rooms. It returns
// nil if there is none.
func AccountDatum(tx *storage.Tx, userID, roomID, eventType string) (json.RawMessage, error) {
	var content json.RawMessage
	_, err := tx.Get(`SELECT content FROM account_data WHERE user_id = $1 AND room_id = $2 AND type = $3`,
		[]any{userID, roomID, eventType}, &content)
	return content, err
}

// PutAccountData sets an account data event in a Write, at the unit's position, and wakes the user's devices. Empty
// content ({} or nil) deletes it (MSC3391). It does not care for types that clients may not set, so that the features
// which own those can use it.
func PutAccountData(tx *storage.Tx, userID, roomID, eventType string, content json.RawMessage) error {
	if isEmptyObject(content) {
		content = nil
	}
	pos, err := tx.Position()
	if err != nil {
		return err
	}
	_, err = tx.Exec(`INSERT INTO account_data (user_id, room_id, type, content, pos) VALUES ($1, $2, $3, $4, $5)
		ON CONFLICT (user_id, room_id, type) DO UPDATE SET content = excluded.content, pos = excluded.pos`,
		userID, roomID, eventType, []byte(content), pos)
	if err != nil {
		return err
	}
	tx.Notice(storage.Notice{Kind: storage.AccountData, User: userID})
	return nil
}

// isEmptyObject tells whether a JSON object has no members.
func isEmptyObject(object json.RawMessage) bool {
	inner := bytes.TrimSpace(object)
	return len(inner) == 0 || len(inner) >= 2 && inner[0] == '{' && len(bytes.TrimSpace(inner[1:len(inner)-1])) == 0
}

const maxDataType = 255 // bytes of an account data type

type accountDataRequest struct {
	UserID string `path:"userId"`
	Type   string `path:"type"`
}

type roomAccountDataRequest struct {
	UserID string `path:"userId"`
	RoomID string `path:"roomId"`
	Type   string `path:"type"`
}

type putAccountDataRequest struct {
	accountDataRequest
	Content json.RawMessage `body:"raw"`
}

type putRoomAccountDataRequest struct {
	roomAccountDataRequest
	Content json.RawMessage `body:"raw"`
}

// rawObject is an answer that is stored as it is sent.
type rawObject json.RawMessage

// AppendJSON appends the object.
func (o *rawObject) AppendJSON(dst []byte) ([]byte, error) { return append(dst, *o...), nil }

func (a *API) getAccountData(ctx context.Context, by *httpapi.Caller, in *accountDataRequest) (*rawObject, error) {
	return a.readDatum(ctx, by, in.UserID, "", in.Type)
}

func (a *API) getRoomAccountData(ctx context.Context, by *httpapi.Caller, in *roomAccountDataRequest) (*rawObject, error) {
	return a.readDatum(ctx, by, in.UserID, in.RoomID, in.Type)
}

func (a *API) putAccountData(ctx context.Context, by *httpapi.Caller, in *putAccountDataRequest) (*httpapi.Empty, error) {
	return nil, a.writeDatum(ctx, by, in.UserID, "", in.Type, in.Content)
}

func (a *API) putRoomAccountData(ctx context.Context, by *httpapi.Caller, in *putRoomAccountDataRequest) (*httpapi.Empty, error) {
	return nil, a.writeDatum(ctx, by, in.UserID, in.RoomID, in.Type, in.Content)
}

func (a *API) deleteAccountData(ctx context.Context, by *httpapi.Caller, in *accountDataRequest) (*httpapi.Empty, error) {
	return nil, a.writeDatum(ctx, by, in.UserID, "", in.Type, nil)
}

func (a *API) deleteRoomAccountData(ctx context.Context, by *httpapi.Caller, in *roomAccountDataRequest) (*httpapi.Empty, error) {
	return nil, a.writeDatum(ctx, by, in.UserID, in.RoomID, in.Type, nil)
}

// own refuses what belongs to another user.
func own(by *httpapi.Caller, userID string) error {
	if userID != by.UserID {
		return mxerr.Forbidden("This belongs to another user")
	}
	return nil
}

func (a *API) readDatum(ctx context.Context, by *httpapi.Caller, userID, roomID, eventType string) (*rawObject, error) {
	if err := own(by, userID); err != nil {
		return nil, err
	}
	var content json.RawMessage
	err := a.db.Read(ctx, func(tx *storage.Tx) (err error) {
		if compute := a.computed[eventType]; compute != nil && roomID == "" {
			content, err = compute(tx, userID)
		} else {
			content, err = AccountDatum(tx, userID, roomID, eventType)
		}
		return err
	})
	switch {
	case err != nil:
		return nil, fmt.Errorf("read account data: %w", err)
	case content == nil:
		return nil, mxerr.NotFound("There is no such account data")
	}
	return (*rawObject)(&content), nil
}

func (a *API) writeDatum(ctx context.Context, by *httpapi.Caller, userID, roomID, eventType string, content json.RawMessage) error {
	if err := own(by, userID); err != nil {
		return err
	}
	switch {
	case eventType == "m.fully_read", eventType == "m.push_rules":
		return mxerr.New(http.StatusMethodNotAllowed, "M_BAD_JSON", "Cannot set "+eventType+" through this API")
	case eventType == "" || len(eventType) > maxDataType:
		return mxerr.InvalidParam("The type must have 1 to 255 bytes")
	}
	err := a.db.Write(ctx, func(tx *storage.Tx) error { return PutAccountData(tx, userID, roomID, eventType, content) })
	if err != nil {
		return fmt.Errorf("write account data: %w", err)
	}
	return nil
}
