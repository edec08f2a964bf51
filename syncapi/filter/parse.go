package filter

import (
	"encoding/json"
	"strconv"
	"strings"

	"github.com/tidwall/gjson"

	"github.com/myelin-im/myelin/internal/mxerr"
)

// maxWildcards bounds the types with wildcards in one list, which are tried one after the other for each event.
const maxWildcards = 64

// Parse compiles a filter for /sync, as in the body of POST /user/{userId}/filter. Its errors are M_NOT_JSON,
// M_BAD_JSON and M_TOO_LARGE.
func Parse(data []byte) (*Filter, error) {
	f := &Filter{}
	err := parse(data, fields{
		"event_fields": func(v gjson.Result, path string) error {
			paths, err := stringList(v, path, nil)
			if err == nil {
				f.Fields = newFields(paths)
			}
			return err
		},
		"event_format": func(v gjson.Result, path string) error {
			if v.Str != "client" && v.Str != "federation" {
				return wrong(path, `"client" or "federation"`)
			}
			f.Federation = v.Str == "federation"
			return nil
		},
		"presence":                          object(f.Presence.fields()),
		"account_data":                      object(f.AccountData.fields()),
		"org.matrix.msc4429.profile_fields": object(fields{"ids": list(&f.ProfileFields, nil)}),
		"room": object(fields{
			"rooms":         ids(&f.Room.rooms, '!'),
			"not_rooms":     ids(&f.Room.notRooms, '!'),
			"include_leave": boolean(&f.Room.IncludeLeave),
			"ephemeral":     object(f.Room.Ephemeral.fields()),
			"state":         object(f.Room.State.fields()),
			"timeline":      object(f.Room.Timeline.fields()),
			"account_data":  object(f.Room.AccountData.fields()),
		}),
	})
	if err != nil {
		return nil, err
	}
	return f, nil
}

// ParseRoomEvents compiles a RoomEventFilter, as in the query of /messages and /context. Its errors are those of Parse.
func ParseRoomEvents(data []byte) (*RoomEventFilter, error) {
	f := &RoomEventFilter{}
	if err := parse(data, f.fields()); err != nil {
		return nil, err
	}
	return f, nil
}

func parse(data []byte, members fields) error {
	if len(data) > MaxBytes {
		return mxerr.TooLarge("The filter is larger than 64 KiB")
	}
	if !json.Valid(data) {
		return mxerr.NotJSON("The filter is not valid JSON")
	}
	return object(members)(gjson.ParseBytes(data), "")
}

// member reads one member of an object into what it closes over; path names it in errors.
type member func(v gjson.Result, path string) error

// fields are the members of an object that have a meaning.
type fields map[string]member

func (f *EventFilter) fields() fields {
	return fields{
		"limit":       f.parseLimit,
		"types":       types(&f.types),
		"not_types":   types(&f.notTypes),
		"senders":     ids(&f.senders, '@'),
		"not_senders": ids(&f.notSends, '@'),
	}
}

func (f *RoomEventFilter) fields() fields {
	m := f.EventFilter.fields()
	m["rooms"] = ids(&f.rooms, '!')
	m["not_rooms"] = ids(&f.notRooms, '!')
	m["lazy_load_members"] = boolean(&f.LazyLoadMembers)
	m["include_redundant_members"] = boolean(&f.IncludeRedundantMembers)
	m["unread_thread_notifications"] = boolean(&f.UnreadThreadNotifications)
	m["contains_url"] = func(v gjson.Result, path string) error {
		f.containsURL = new(bool)
		return boolean(f.containsURL)(v, path)
	}
	m["related_by_senders"] = list(&f.RelatedBySenders, userID)
	m["related_by_rel_types"] = list(&f.RelatedByRelTypes, nil)
	m["org.matrix.msc3874.rel_types"] = ids(&f.relTypes, 0)
	m["org.matrix.msc3874.not_rel_types"] = ids(&f.notRelTypes, 0)
	return m
}

// object reads the members of an object that have a meaning. Null stands for an absent member.
func object(members fields) member {
	return func(v gjson.Result, path string) (err error) {
		if !v.IsObject() {
			return wrong(path, "an object")
		}
		v.ForEach(func(key, value gjson.Result) bool {
			if read := members[key.Str]; read != nil && value.Type != gjson.Null {
				err = read(value, strings.TrimPrefix(path+"."+key.Str, "."))
			}
			return err == nil
		})
		return err
	}
}

func (f *EventFilter) parseLimit(v gjson.Result, path string) error {
	n, err := strconv.ParseInt(v.Raw, 10, 64)
	if v.Type != gjson.Number || err != nil || n < 0 {
		return wrong(path, "an integer that is not negative")
	}
	f.limit, f.limited = int(min(n, 1<<30)), true
	return nil
}

func boolean(to *bool) member {
	return func(v gjson.Result, path string) error {
		if !v.IsBool() {
			return wrong(path, "true or false")
		}
		*to = v.Bool()
		return nil
	}
}

func types(to *patterns) member {
	return func(v gjson.Result, path string) error {
		entries, err := stringList(v, path, nil)
		if err != nil {
			return err
		}
		if *to = newPatterns(entries); len(to.globs) > maxWildcards {
			return wrong(path, "a list with at most "+strconv.Itoa(maxWildcards)+" wildcards")
		}
		return nil
	}
}

// ids reads a list of identifiers that start with the sigil; 0 stands for any string.
func ids(to *set, sigil byte) member {
	check := map[byte]func(string) string{'@': userID, '!': roomID}[sigil]
	return func(v gjson.Result, path string) error {
		list, err := stringList(v, path, check)
		if err == nil {
			*to = newSet(list)
		}
		return err
	}
}

// list reads a list of strings that is not nil afterwards.
func list(to *[]string, check func(string) string) member {
	return func(v gjson.Result, path string) (err error) {
		*to, err = stringList(v, path, check)
		return err
	}
}

// stringList reads a list of strings. check, if any, says what an unfit element should be instead.
func stringList(v gjson.Result, path string, check func(string) string) (list []string, err error) {
	if !v.IsArray() {
		return nil, wrong(path, "a list of strings")
	}
	list = []string{}
	v.ForEach(func(_, e gjson.Result) bool {
		if e.Type != gjson.String {
			err = wrong(path, "a list of strings")
		} else if check != nil && check(e.Str) != "" {
			err = wrong(path, check(e.Str))
		}
		list = append(list, e.Str)
		return err == nil
	})
	return list, err
}

func userID(s string) string {
	if len(s) < 2 || s[0] != '@' || !strings.Contains(s, ":") {
		return "a list of user ids"
	}
	return ""
}

// roomID accepts ids without a domain: from room version 12 on there are such.
func roomID(s string) string {
	if len(s) < 2 || s[0] != '!' {
		return "a list of room ids"
	}
	return ""
}

func wrong(path, want string) error {
	if path == "" {
		return mxerr.BadJSON("The filter must be " + want)
	}
	return mxerr.BadJSON("Filter: " + path + " must be " + want)
}
