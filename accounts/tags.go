package accounts

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/storage"
)

// Tags are one account data event per room, of which clients change one member at a time.
//
// Spec: client-server API v1.19, "Room Tagging".

const (
	tagType    = "m.tag"
	maxTag     = 255      // bytes of a tag's name
	maxTagData = 64 << 10 // bytes of all tags of a room
)

// tagContent is the content of m.tag.
type tagContent struct {
	Tags map[string]json.RawMessage `json:"tags"`
}

// readTags reads the tags of a room. Content that another client wrote in another form counts as none.
func readTags(tx *storage.Tx, userID, roomID string) (*tagContent, error) {
	content, err := AccountDatum(tx, userID, roomID, tagType)
	if err != nil {
		return nil, err
	}
	c := &tagContent{}
	if content != nil && json.Unmarshal(content, c) != nil {
		c.Tags = nil
	}
	if c.Tags == nil {
		c.Tags = map[string]json.RawMessage{}
	}
	return c, nil
}

type tagsRequest struct {
	UserID string `path:"userId"`
	RoomID string `path:"roomId"`
}

type tagRequest struct {
	UserID string `path:"userId"`
	RoomID string `path:"roomId"`
	Tag    string `path:"tag"`
}

type putTagRequest struct {
	tagRequest
	Content json.RawMessage `body:"raw"`
}

func (a *API) getTags(ctx context.Context, by *httpapi.Caller, in *tagsRequest) (*tagContent, error) {
	if err := own(by, in.UserID); err != nil {
		return nil, err
	}
	var c *tagContent
	err := a.db.Read(ctx, func(tx *storage.Tx) (err error) {
		c, err = readTags(tx, in.UserID, in.RoomID)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read tags: %w", err)
	}
	return c, nil
}

func (a *API) putTag(ctx context.Context, by *httpapi.Caller, in *putTagRequest) (*httpapi.Empty, error) {
	var known struct {
		Order *float64 `json:"order"`
	}
	if err := json.Unmarshal(in.Content, &known); err != nil {
		return nil, mxerr.BadJSON("order must be a number").With(err)
	}
	if o := known.Order; o != nil && (*o < 0 || *o > 1) {
		return nil, mxerr.InvalidParam("order must be between 0 and 1")
	}
	return nil, a.changeTags(ctx, by, &in.tagRequest, func(tags map[string]json.RawMessage) bool {
		tags[in.Tag] = in.Content
		return true
	})
}

func (a *API) deleteTag(ctx context.Context, by *httpapi.Caller, in *tagRequest) (*httpapi.Empty, error) {
	return nil, a.changeTags(ctx, by, in, func(tags map[string]json.RawMessage) bool {
		_, had := tags[in.Tag]
		delete(tags, in.Tag)
		return had
	})
}

// PutTag tags a room for a user, in a Write.
func PutTag(tx *storage.Tx, userID, roomID, tag string, content json.RawMessage) error {
	return writeTags(tx, userID, roomID, func(tags map[string]json.RawMessage) bool {
		tags[tag] = content
		return true
	})
}

// changeTags changes the tags of a room. change tells whether anything is different.
func (a *API) changeTags(ctx context.Context, by *httpapi.Caller, in *tagRequest, change func(tags map[string]json.RawMessage) bool) error {
	if err := own(by, in.UserID); err != nil {
		return err
	}
	if in.Tag == "" || len(in.Tag) > maxTag {
		return mxerr.InvalidParam("The tag must have 1 to 255 bytes")
	}
	err := a.db.Write(ctx, func(tx *storage.Tx) error { return writeTags(tx, in.UserID, in.RoomID, change) })
	if err != nil {
		return fmt.Errorf("change tags: %w", err)
	}
	return nil
}

// writeTags is changeTags in a Write.
func writeTags(tx *storage.Tx, userID, roomID string, change func(tags map[string]json.RawMessage) bool) error {
	if err := tx.Lock("tags " + userID); err != nil {
		return err
	}
	c, err := readTags(tx, userID, roomID)
	if err != nil || !change(c.Tags) {
		return err
	}
	content, err := json.Marshal(c)
	switch {
	case err != nil:
		return err
	case len(content) > maxTagData:
		return mxerr.TooLarge("The tags of this room are too many or too large")
	}
	return PutAccountData(tx, userID, roomID, tagType, content)
}
