package roomserver

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"strconv"
	"strings"

	"github.com/myelin-im/myelin/roomserver/authrules"
	"github.com/myelin-im/myelin/roomserver/pdu"
	"github.com/myelin-im/myelin/roomserver/snapshot"
)

// takenLevels are the power levels of a new room that replaces another: those of the old room in the form that the
// new version wants. Creators whose power does not come from the levels are left out of them; where the old version gave
// them such a power and the new one does not, they get the highest level that anything needs.
func (t *Turn) takenLevels(old *Room, root snapshot.Ref, u *Upgrade) (any, error) {
	e, err := t.s.StateEvent(t.ctx, old, root, "m.room.power_levels", "")
	if err != nil {
		return nil, err
	}
	if e == nil {
		n := &NewRoom{Creator: u.User, Version: u.Version, Preset: PrivateChat}
		return n.powerLevels()
	}
	create, err := t.s.StateEvent(t.ctx, old, root, "m.room.create", "")
	if err != nil {
		return nil, err
	}
	content, err := readLevels(e.Content())
	if err != nil {
		return nil, fmt.Errorf("power levels of %s: %w", old.ID, err)
	}
	users := content.object("users")
	maps.DeleteFunc(users, func(id string, _ any) bool { return !pdu.ValidUserID(id) })
	switch {
	case u.Version.CreatorsPrivileged:
		for _, c := range u.creators() {
			delete(users, c)
		}
		content.guardTombstone(!old.Version.CreatorsPrivileged)
	case old.Version.CreatorsPrivileged:
		highest := content.highest()
		for _, c := range authrules.Creators(create.Event) {
			users[c] = highest
		}
	}
	return map[string]any(content), nil
}

// levelContent is the content of m.room.power_levels with integers (int64) for all levels.
type levelContent map[string]any

// readLevels reads power levels. What is no level in any version is left out, which leaves its default.
func readLevels(raw []byte) (levelContent, error) {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	content := levelContent{}
	if err := d.Decode(&content); err != nil {
		return nil, err
	}
	for key, v := range content {
		switch key {
		case "users", "events", "notifications":
			object, ok := v.(map[string]any)
			if !ok {
				delete(content, key)
				continue
			}
			for k, v := range object {
				if n, ok := levelOf(v); ok {
					object[k] = n
				} else {
					delete(object, k)
				}
			}
		case "users_default", "events_default", "state_default", "ban", "redact", "kick", "invite":
			if n, ok := levelOf(v); ok {
				content[key] = n
			} else {
				delete(content, key)
			}
		}
	}
	return content, nil
}

// levelOf reads a level in the forms that old versions of rooms allow.
func levelOf(v any) (int64, bool) {
	var text string
	switch v := v.(type) {
	case json.Number:
		text = v.String()
	case string:
		text = strings.TrimSpace(v)
	}
	if n, err := strconv.ParseInt(text, 10, 64); err == nil {
		return n, n >= -pdu.MaxDepth && n <= pdu.MaxDepth
	}
	f, err := strconv.ParseFloat(text, 64)
	return int64(f), err == nil && f >= -float64(pdu.MaxDepth) && f <= float64(pdu.MaxDepth)
}

// object returns a member that is an object, making it if it is missing.
func (c levelContent) object(name string) map[string]any {
	o, _ := c[name].(map[string]any)
	if o == nil {
		o = map[string]any{}
		c[name] = o
	}
	return o
}

// level returns a level of the content's top, or its default.
func (c levelContent) level(name string, or int64) int64 {
	if n, ok := c[name].(int64); ok {
		return n
	}
	return or
}

// highest is the highest level that anything needs or anyone has, and at least 100.
func (c levelContent) highest() int64 {
	n := int64(100)
	for _, v := range []map[string]any{c, c.object("events"), c.object("users"), c.object("notifications")} {
		for _, level := range v {
			if l, ok := level.(int64); ok {
				n = max(n, l)
			}
		}
	}
	return n
}

// creatorsOnly is the level of what only creators may do in versions that give them a power of their own.
const creatorsOnly = 150

// guardTombstone makes replacing the room harder than other state, as such versions want it: from an older version it
// becomes the creators' alone (client-server API v1.19, createRoom).
func (c levelContent) guardTombstone(older bool) {
	events := c.object("events")
	least := c.level("state_default", 50) + 1
	if older {
		least = max(least, creatorsOnly)
	}
	if now, ok := events["m.room.tombstone"].(int64); !ok || now < least {
		events["m.room.tombstone"] = max(least, creatorsOnly)
	}
}

// silence keeps people from sending messages to a room that is replaced, and from inviting others to it.
func (t *Turn) silence(user string) error {
	e, err := t.State("m.room.power_levels", "")
	if err != nil || e == nil {
		return err
	}
	content := map[string]json.RawMessage{}
	if err := json.Unmarshal(e.Content(), &content); err != nil {
		return fmt.Errorf("power levels: %w", err)
	}
	now, err := readLevels(e.Content())
	if err != nil {
		return fmt.Errorf("power levels: %w", err)
	}
	least := max(50, now.level("users_default", 0)+1)
	changed := false
	for _, name := range []string{"events_default", "invite"} {
		if now.level(name, 0) < least {
			content[name] = json.RawMessage(strconv.FormatInt(least, 10))
			changed = true
		}
	}
	if !changed {
		return nil
	}
	return t.appendState(user, "m.room.power_levels", "", content)
}
