package httpapi

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/myelin-im/myelin/internal/mxerr"
)

// plan is how a request struct is filled, worked out once when its endpoint is declared.
type plan struct {
	paths   []pathField
	queries []textField
	headers []textField
	members []memberField
	raw     []int // the field for the whole body, or nil
	// rawDefault stands for an empty body; without it, the body must be sent.
	rawDefault string
}

type pathField struct {
	field []int
	param int // which wildcard, from the left
}

// textField is a query parameter or a header.
type textField struct {
	field    []int
	name     string
	required bool
	set      func(v reflect.Value, s string) error
	preset   string // what stands in it without the parameter
}

// memberField is a top-level member of the body.
type memberField struct {
	field    []int
	name     string
	required bool
	typ      reflect.Type
	direct   bool // a plain string or boolean, set without encoding/json
}

// request is what a plan reads from. It is pooled: everything a handler gets is copied out of it.
type request struct {
	http   *http.Request
	params [maxParams]string
	body   []byte // an object that checkObject passed, or empty
	buf    []byte // reused memory for body
}

// newPlan works out the plan for T, declared for the given path.
func newPlan[T any](path string) (*plan, error) {
	t := reflect.TypeFor[T]()
	if t.Kind() != reflect.Struct {
		return nil, fmt.Errorf("the request type %s is not a struct", t)
	}
	p := &plan{}
	if err := p.addStruct(t, nil, Endpoint{Path: path}.Params()); err != nil {
		return nil, fmt.Errorf("request type %s: %w", t, err)
	}
	if max(len(p.queries), len(p.members)) > 64 {
		return nil, fmt.Errorf("request type %s has more fields than a set of 64 bits holds", t)
	}
	return p, nil
}

func (p *plan) addStruct(t reflect.Type, at []int, params []string) error {
	for i := range t.NumField() {
		f := t.Field(i)
		index := append(slices.Clone(at), i)
		var err error
		switch {
		case f.Anonymous && f.Type.Kind() == reflect.Struct:
			err = p.addStruct(f.Type, index, params)
		case f.IsExported():
			err = p.addField(f, index, params)
		}
		if err != nil {
			return fmt.Errorf("field %s: %w", f.Name, err)
		}
	}
	return nil
}

func (p *plan) addField(f reflect.StructField, index []int, params []string) error {
	required := f.Tag.Get("required") == "true"
	if name := f.Tag.Get("path"); name != "" {
		at := slices.Index(params, name)
		if at < 0 || f.Type.Kind() != reflect.String {
			return fmt.Errorf("%q must be a wildcard of the path and the field a string", name)
		}
		p.paths = append(p.paths, pathField{index, at})
		return nil
	}
	if name := f.Tag.Get("query"); name != "" {
		set, err := textSetter(f)
		if err != nil {
			return err
		}
		p.queries = append(p.queries, textField{index, name, required, set, f.Tag.Get("default")})
		return nil
	}
	if name := f.Tag.Get("header"); name != "" {
		set, err := textSetter(f)
		if err != nil {
			return err
		}
		p.headers = append(p.headers, textField{index, http.CanonicalHeaderKey(name), required, set, f.Tag.Get("default")})
		return nil
	}
	if f.Tag.Get("body") == "raw" {
		if f.Type != reflect.TypeFor[json.RawMessage]() {
			return errors.New("the whole body goes into a json.RawMessage")
		}
		p.raw, p.rawDefault = index, f.Tag.Get("default")
		return nil
	}
	name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
	switch name {
	case "":
		return errors.New("no tag says where it comes from")
	case "-":
		return nil
	}
	p.members = append(p.members, memberField{index, name, required, f.Type, isDirect(f.Type)})
	return nil
}

// bodyOf says what an endpoint with this request type does with its body. POST and PUT bodies are
// checked even where nothing is read from them; what a client sends to DELETE without being asked is ignored.
func (p *plan) bodyOf(method string) Body {
	switch {
	case p.raw != nil && p.rawDefault == "":
		return RequiredBody
	case method == http.MethodGet, method == http.MethodDelete && len(p.members) == 0:
		return NoBody
	}
	return OptionalBody
}

// decode fills in, a pointer to the plan's struct.
func (p *plan) decode(in any, req *request) error {
	v := reflect.ValueOf(in).Elem()
	for _, f := range p.paths {
		v.FieldByIndex(f.field).SetString(req.params[f.param])
	}
	if len(p.queries) > 0 {
		if err := p.decodeQuery(v, req.http.URL.RawQuery); err != nil {
			return err
		}
	}
	for i := range p.headers {
		f := &p.headers[i]
		if err := f.assign(v, req.http.Header.Get(f.name)); err != nil {
			return err
		}
	}
	if len(p.members) > 0 {
		if err := p.decodeMembers(v, req.body); err != nil {
			return err
		}
	}
	if p.raw != nil {
		// The handler owns it; a second body of this size is not worth a pool.
		body := req.body
		if len(body) == 0 {
			body = []byte(p.rawDefault)
		}
		v.FieldByIndex(p.raw).SetBytes(body)
		req.buf, req.body = nil, nil
	}
	return nil
}

func (p *plan) decodeQuery(v reflect.Value, raw string) error {
	var seen uint64 // a set of indices
	for name, value := range queryPairs(raw) {
		name, err := unescapeQuery(name)
		if err != nil {
			continue
		}
		i := slices.IndexFunc(p.queries, func(f textField) bool { return f.name == name })
		if i < 0 {
			continue
		}
		f := &p.queries[i]
		field := v.FieldByIndex(f.field)
		if seen&(1<<i) != 0 && field.Kind() != reflect.Slice {
			continue // the first one counts
		}
		seen |= 1 << i
		if value, err = unescapeQuery(value); err != nil || !utf8.ValidString(value) {
			return mxerr.InvalidParam("Query parameter " + f.name + " is not properly encoded")
		}
		if err := f.set(field, value); err != nil {
			return mxerr.InvalidParam("Query parameter " + f.name + " " + err.Error())
		}
	}
	for i := range p.queries {
		if seen&(1<<i) == 0 {
			if err := p.queries[i].assign(v, ""); err != nil {
				return err
			}
		}
	}
	return nil
}

// assign sets a header, or an absent parameter to its default.
func (f *textField) assign(v reflect.Value, s string) error {
	if s == "" {
		if f.required {
			return mxerr.MissingParam("Missing parameter " + f.name)
		}
		if s = f.preset; s == "" {
			return nil
		}
	}
	if err := f.set(v.FieldByIndex(f.field), s); err != nil {
		return mxerr.InvalidParam("Parameter " + f.name + " " + err.Error())
	}
	return nil
}

// textSetter returns how a parameter's text becomes a field's value.
func textSetter(f reflect.StructField) (func(reflect.Value, string) error, error) {
	set, err := scalarSetter(f.Type, f.Tag)
	switch {
	case err == nil:
		return set, nil
	case f.Type.Kind() == reflect.Pointer:
		elem, err := scalarSetter(f.Type.Elem(), f.Tag)
		if err != nil {
			return nil, err
		}
		return func(v reflect.Value, s string) error {
			v.Set(reflect.New(f.Type.Elem()))
			return elem(v.Elem(), s)
		}, nil
	case f.Type.Kind() == reflect.Slice && f.Type.Elem().Kind() == reflect.String:
		return func(v reflect.Value, s string) error {
			if v.Len() >= maxRepeats {
				return fmt.Errorf("stands more than %d times", maxRepeats)
			}
			v.Set(reflect.Append(v, reflect.ValueOf(s).Convert(f.Type.Elem())))
			return nil
		}, nil
	}
	return nil, err
}

// maxRepeats bounds how often a query parameter may be repeated (via, server_name).
const maxRepeats = 100

func scalarSetter(t reflect.Type, tag reflect.StructTag) (func(reflect.Value, string) error, error) {
	switch t.Kind() {
	case reflect.String:
		allowed := tag.Get("enum")
		options := strings.Split(allowed, "|")
		return func(v reflect.Value, s string) error {
			if allowed != "" && !slices.Contains(options, s) {
				return errors.New("must be one of " + strings.Join(options, ", "))
			}
			v.SetString(s)
			return nil
		}, nil
	case reflect.Bool:
		return func(v reflect.Value, s string) error {
			if s != "true" && s != "false" {
				return errors.New("must be true or false")
			}
			v.SetBool(s == "true")
			return nil
		}, nil
	case reflect.Int, reflect.Int64:
		low, err := bound(tag.Get("min"), -1<<63)
		if err != nil {
			return nil, err
		}
		high, err := bound(tag.Get("max"), 1<<63-1)
		if err != nil {
			return nil, err
		}
		return func(v reflect.Value, s string) error {
			n, err := strconv.ParseInt(s, 10, 64)
			if err != nil {
				return errors.New("must be an integer")
			}
			if n < low || n > high {
				return errors.New("is out of range")
			}
			v.SetInt(n)
			return nil
		}, nil
	}
	return nil, fmt.Errorf("parameters cannot be read into %s", t)
}

func bound(tag string, without int64) (int64, error) {
	if tag == "" {
		return without, nil
	}
	return strconv.ParseInt(tag, 10, 64)
}

func (p *plan) decodeMembers(v reflect.Value, body []byte) error {
	var seen uint64
	if len(body) > 0 {
		err := eachMember(body, func(key, value []byte) error {
			i := p.member(key)
			if i < 0 {
				return nil
			}
			f := &p.members[i]
			if string(value) != "null" {
				seen |= 1 << i
			}
			return f.decode(v.FieldByIndex(f.field), value)
		})
		if err != nil {
			return err
		}
	}
	for i := range p.members {
		if f := &p.members[i]; f.required && seen&(1<<i) == 0 {
			return mxerr.MissingParam("Missing parameter " + f.name)
		}
	}
	return nil
}

// member finds the field for a key as it stands in the body. Names are matched exactly, where
// encoding/json would let "PASSWORD" replace "password".
func (p *plan) member(key []byte) int {
	if slices.Contains(key, '\\') {
		var s string
		if json.Unmarshal(slices.Concat([]byte{'"'}, key, []byte{'"'}), &s) != nil {
			return -1
		}
		key = []byte(s)
	}
	return slices.IndexFunc(p.members, func(f memberField) bool { return f.name == string(key) })
}

// isDirect reports whether values of a type are set by memberField.decode itself.
func isDirect(t reflect.Type) bool {
	switch t.Kind() {
	case reflect.String, reflect.Bool:
		return !reflect.PointerTo(t).Implements(reflect.TypeFor[json.Unmarshaler]())
	}
	return false
}

func (f *memberField) decode(v reflect.Value, value []byte) error {
	if f.direct {
		switch {
		case string(value) == "null":
			return nil
		case v.Kind() == reflect.Bool && value[0] == 't', v.Kind() == reflect.Bool && value[0] == 'f':
			v.SetBool(value[0] == 't')
			return nil
		case v.Kind() == reflect.String && value[0] == '"' && !slices.Contains(value, '\\'):
			v.SetString(string(value[1 : len(value)-1]))
			return nil
		}
	}
	err := json.Unmarshal(value, v.Addr().Interface())
	if err == nil {
		return nil
	}
	if e := mxerr.As(err); e != nil {
		return e
	}
	if wrong, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		name := f.name
		if wrong.Field != "" {
			name += "." + wrong.Field
		}
		return mxerr.BadJSON(name + " must be " + describe(wrong.Type) + ", not " + wrong.Value)
	}
	return mxerr.BadJSON(f.name + " is not valid").With(err)
}

// describe names a type in the words of JSON.
func describe(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Bool:
		return "a boolean"
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return "an integer within range"
	case reflect.Float32, reflect.Float64:
		return "a number"
	case reflect.String:
		return "a string"
	case reflect.Slice, reflect.Array:
		return "an array"
	case reflect.Pointer:
		return describe(t.Elem())
	}
	return "an object"
}
