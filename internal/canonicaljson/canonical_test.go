package canonicaljson

import (
	"bytes"
	"encoding/json"
	"errors"
	"math/big"
	"reflect"
	"strings"
	"testing"
)

func TestSpecificationExamples(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{`{}`, `{}`},
		{`{ "one": 1, "two": "Two" }`, `{"one":1,"two":"Two"}`},
		{`{ "b": "2", "a": "1" }`, `{"a":"1","b":"2"}`},
		{`{"b":"2","a":"1"}`, `{"a":"1","b":"2"}`},
		{
			`{"auth": {"success": true, "mxid": "@john.doe:example.com", "profile": {"display_name": "John Doe",
			 "three_pids": [{"medium": "email", "address": "john.doe@example.org"}, {"medium": "msisdn", "address": "123456789"}]}}}`,
			`{"auth":{"mxid":"@john.doe:example.com","profile":{"display_name":"John Doe","three_pids":[{"address":"john.doe@example.org","medium":"email"},{"address":"123456789","medium":"msisdn"}]},"success":true}}`,
		},
		{`{"a": "日本語"}`, `{"a":"日本語"}`},
		{`{"本": 2, "日": 1}`, `{"日":1,"本":2}`},
		{`{"a": "\u65E5"}`, `{"a":"日"}`},
		{`{"a": null}`, `{"a":null}`},
		{`{"a": -0, "b": 1e10}`, `{"a":0,"b":10000000000}`},
	} {
		got, err := Canonical([]byte(c.in), Lax)
		if err != nil || string(got) != c.want {
			t.Errorf("Canonical(%s) = %s, %v; want %s", c.in, got, err, c.want)
		}
	}
}

func TestCanonicalBothModes(t *testing.T) {
	for _, c := range []struct{ name, in, want string }{
		{"white space", " \t\r\n[ 1 ,\n2 ] ", `[1,2]`},
		{"scalars", ` "x" `, `"x"`},
		{"words", `[true,false,null]`, `[true,false,null]`},
		{"empty containers", `{"a":{ },"b":[ ]}`, `{"a":{},"b":[]}`},
		{"nested sorting", `{"b":{"d":1,"c":[{"z":1,"y":2}]},"a":1}`, `{"a":1,"b":{"c":[{"y":2,"z":1}],"d":1}}`},
		{"last duplicate wins", `{"a":1,"b":2,"a":3}`, `{"a":3,"b":2}`},
		{"duplicates through escapes", `{"a":1,"\u0061":2}`, `{"a":2}`},
		{"adjacent duplicates", `{"a":1,"a":2,"a":[]}`, `{"a":[]}`},
		// U+FF5E sorts before U+1F600 by code point, but after it in UTF-16.
		{"order of code points", `{"😀":1,"～":2}`, `{"～":2,"😀":1}`},
		// The decoded name decides: a line feed sorts before "!", its escape after.
		{"order of escaped names", `{"!":1,"\n":2}`, `{"\n":2,"!":1}`},
		{"prefix sorts first", `{"ab":1,"a":2}`, `{"a":2,"ab":1}`},
		{"empty name", `{"a":1,"":2}`, `{"":2,"a":1}`},
		{"needless escapes", `"\/\u0041\u00e9\u65e5\ud83d\ude00"`, `"/Aé日😀"`},
		{"needed escapes", `"\u0008\u0009\u000a\u000c\u000d\u0022\u005c"`, `"\b\t\n\f\r\"\\"`},
		{"other control characters", `"\u0000\u0001\u000B\u001F"`, `"\u0000\u0001\u000b\u001f"`},
		{"delete and separators stand for themselves", "\"\\u007f\\u2028<>&\"", "\"\x7f\u2028<>&\""},
		{"negative zero", `[-0]`, `[0]`},
		{"limits", `[9007199254740991,-9007199254740991]`, `[9007199254740991,-9007199254740991]`},
	} {
		for _, mode := range []Mode{Strict, Lax} {
			got, err := Canonical([]byte(c.in), mode)
			if err != nil || string(got) != c.want {
				t.Errorf("%s: Canonical(%s, %d) = %s, %v; want %s", c.name, c.in, mode, got, err, c.want)
			}
		}
	}
}

func TestNotJSON(t *testing.T) {
	for _, in := range []string{
		``, ` `, `{`, `[`, `"`, `"\`, `"\u12`, `{"a"}`, `{"a":}`, `{"a":1,}`, `{,}`, `[1,]`, `[,1]`, `[1 2]`, `{"a":1 "b":2}`,
		`{a:1}`, `{'a':1}`, `{1:1}`, `tru`, `truex`, `nul`, `NaN`, `Infinity`, `-`, `+1`, `01`, `-01`, `.5`, `1.`, `1e`, `1e+`, `0x1`,
		`{}{}`, `1 2`, `"a"b`, "\"a\nb\"", "\"\x00\"", `"\x41"`, `"\u00g0"`, "\ufeff{}", `{"a":1}]`, `]`, `}`, `[}`, `{]`,
		"\"\xff\"", "\"\xc3\"", "\"\xed\xa0\x80\"", "\"\xc0\x80\"", "{\"\xff\":1}",
		`"\ud800"`, `"\udc00"`, `"\ud800\ud800"`, `"\ud800x"`, `"\ud800\u0041"`, `"\udc00\ud800"`, `{"\ud800":1}`,
	} {
		for _, mode := range []Mode{Strict, Lax} {
			if got, err := Canonical([]byte(in), mode); !errors.Is(err, ErrSyntax) {
				t.Errorf("Canonical(%q) = %q, %v; want a syntax error", in, got, err)
			}
		}
	}
}

func TestNumbers(t *testing.T) {
	for _, c := range []struct{ in, lax string }{
		{`9007199254740992`, `9007199254740992`},
		{`-9007199254740992`, `-9007199254740992`},
		{`123456789012345678901234567890`, `123456789012345678901234567890`},
		{`1.0`, `1.0`},
		{`1.50`, `1.5`},
		{`-0.0`, `-0.0`},
		{`0.1`, `0.1`},
		{`0.0001`, `0.0001`},
		{`0.00001`, `1e-05`},
		{`1e2`, `100`},
		{`1E+2`, `100`},
		{`-1.5e1`, `-15`},
		{`1.5e0`, `1.5`},
		{`5e-1`, `0.5`},
		{`1e16`, `1e+16`},
		{`12345678901234567.0`, `1.2345678901234568e+16`},
		{`1e100`, `1e+100`},
		{`1e-400`, `0`},
		{`1e400`, ``},
		{`-1e400`, ``},
	} {
		got, err := Canonical([]byte(c.in), Lax)
		if c.lax == "" {
			if !errors.Is(err, ErrNumber) {
				t.Errorf("Canonical(%s, Lax) = %s, %v; want a number error", c.in, got, err)
			}
		} else if err != nil || string(got) != c.lax {
			t.Errorf("Canonical(%s, Lax) = %s, %v; want %s", c.in, got, err, c.lax)
		}
		for _, in := range []string{c.in, `{"b":[` + c.in + `],"a":1}`} {
			if got, err := Canonical([]byte(in), Strict); !errors.Is(err, ErrNumber) {
				t.Errorf("Canonical(%s, Strict) = %s, %v; want a number error", in, got, err)
			}
		}
	}
}

func TestDepth(t *testing.T) {
	nested := func(n int) []byte {
		return []byte(strings.Repeat(`{"a":[`, n/2) + strings.Repeat(`]}`, n/2))
	}
	if got, err := Canonical(nested(MaxDepth), Strict); err != nil || !bytes.Equal(got, nested(MaxDepth)) {
		t.Errorf("%d levels: %v", MaxDepth, err)
	}
	for _, n := range []int{MaxDepth + 2, 1 << 20} {
		if _, err := Canonical(nested(n), Strict); !errors.Is(err, ErrSyntax) {
			t.Errorf("%d levels: %v; want an error", n, err)
		}
	}
	if _, err := Canonical(bytes.Repeat([]byte("["), 1<<20), Strict); !errors.Is(err, ErrSyntax) {
		t.Errorf("only opening brackets: %v; want an error", err)
	}
}

func TestCanonicalInputIsReturned(t *testing.T) {
	in := []byte(sampleCanonical)
	got, err := Canonical(in, Strict)
	if err != nil || &got[0] != &in[0] {
		t.Fatalf("Canonical copied canonical input (%v)", err)
	}
	if n := testing.AllocsPerRun(10, func() { _, _ = Canonical(in, Strict) }); n != 0 {
		t.Errorf("%v allocations for canonical input, want 0", n)
	}
}

func TestIsCanonicalRefuses(t *testing.T) {
	for _, in := range []string{
		``, ` {}`, `{} `, `{"a": 1}`, `{"b":1,"a":1}`, `{"a":1,"a":1}`, `[1, 2]`, `"\/"`, `"\u0041"`, `"\u000a"`, `"\u000B"`, `"\u001F"`,
		`-0`, `1.0`, `1e1`, `01`, `-`, `{"a":1,}`, `[1,]`, `{"a"}`, `[`, `{`, `{"a":`, `"`, `x`, "\"\xff\"", `9007199254740992`, `[[1]`, `[1]]`, `{"a":1]`,
	} {
		if isCanonical([]byte(in), Strict) {
			t.Errorf("isCanonical(%q) is true", in)
		}
	}
}

func TestAppendString(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"", `""`},
		{"plain", `"plain"`},
		{"a\"b\\c/d\x00\x1f\b\t\n\f\r\x7f", `"a\"b\\c/d\u0000\u001f\b\t\n\f\r` + "\x7f\""},
		{"日😀\u2028<>&", "\"日😀\u2028<>&\""},
		{"a\xffb\xed\xa0\x80", "\"a\uFFFDb\uFFFD\uFFFD\uFFFD\""},
	} {
		got := AppendString([]byte("x"), c.in)
		if string(got) != "x"+c.want {
			t.Errorf("AppendString(%q) = %s, want %s", c.in, got[1:], c.want)
		}
		if !isCanonical(got[1:], Strict) {
			t.Errorf("AppendString(%q) is not canonical", c.in)
		}
	}
}

func TestDecodeString(t *testing.T) {
	for _, c := range []struct {
		in, want string
		ok       bool
	}{
		{`""`, "", true},
		{`"a"`, "a", true},
		{`"\"\\\n\u0000"`, "\"\\\n\x00", true},
		{`"\ud83d\ude00"`, "😀", true},
		{`"\ud83d"`, "", false},
		{`"\x"`, "", false},
		{`1`, "", false},
		{`"`, "", false},
		{``, "", false},
		{`{}`, "", false},
	} {
		if got, ok := DecodeString([]byte(c.in)); string(got) != c.want || ok != c.ok {
			t.Errorf("DecodeString(%s) = %q, %v; want %q, %v", c.in, got, ok, c.want, c.ok)
		}
	}
}

func TestWalk(t *testing.T) {
	for _, c := range []struct {
		in   string
		want []string
	}{
		{`{}`, nil},
		{`[]`, nil},
		{`"x"`, nil},
		{``, nil},
		{`{"a":1}`, []string{"a", "1"}},
		{`{"a":{"x":[1,"]"]},"b":"}\\\"","c":null}`, []string{"a", `{"x":[1,"]"]}`, "b", `"}\\\""`, "c", "null"}},
		{`["\\",[[]],{"a":"b"},-1]`, []string{"", `"\\"`, "", "[[]]", "", `{"a":"b"}`, "", "-1"}},
	} {
		var got []string
		for w := Walk([]byte(c.in)); w.Next(); {
			got = append(got, string(w.Name), string(w.Value))
		}
		if !reflect.DeepEqual(got, c.want) {
			t.Errorf("Walk(%s) = %q, want %q", c.in, got, c.want)
		}
	}
	if got := Member([]byte(`{"a":1,"b":[2],"c":3}`), "b"); string(got) != "[2]" {
		t.Errorf("Member = %s", got)
	}
	if got := Member([]byte(`{"a":1}`), "b"); got != nil {
		t.Errorf("Member of nothing = %s", got)
	}
}

func FuzzCanonical(f *testing.F) {
	for _, s := range []string{
		sampleCanonical, sampleLoose, `{"a":-0,"b":1e10}`, `[1.5,-0.0,1e-7]`, `{"a":1,"\u0061":2}`, `"\ud83d\ude00\u0000"`, `[[[[]]]]`, "\"\xff\"",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		for _, mode := range []Mode{Strict, Lax} {
			checkCanonical(t, in, mode)
		}
		for w := Walk(in); w.Next(); { // must not panic on anything
			_ = Member(w.Value, "a")
		}
	})
}

// checkCanonical states what holds for any input.
func checkCanonical(t *testing.T, in []byte, mode Mode) {
	p := parser{in: in, mode: mode}
	root, err := p.document()
	fast := isCanonical(in, mode)
	if err != nil {
		if fast {
			t.Fatalf("%q is called canonical but is not accepted: %v", in, err)
		}
		return
	}
	out := p.append(nil, root)
	if fast && !bytes.Equal(in, out) {
		t.Fatalf("%q is called canonical but its form is %q", in, out)
	}
	again, err := Canonical(out, mode)
	if err != nil || !bytes.Equal(out, again) {
		t.Fatalf("%q becomes %q and that %q (%v)", in, out, again, err)
	}
	var a, b any
	if err := decode(in, &a); err != nil {
		t.Fatalf("encoding/json refuses %q: %v", in, err)
	}
	if err := decode(out, &b); err != nil {
		t.Fatalf("encoding/json refuses %q: %v", out, err)
	}
	if !sameJSON(a, b) {
		t.Fatalf("%q and %q differ", in, out)
	}
}

func decode(b []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	return d.Decode(into)
}

func sameJSON(a, b any) bool {
	switch a := a.(type) {
	case map[string]any:
		b, ok := b.(map[string]any)
		if !ok || len(a) != len(b) {
			return false
		}
		for k := range a {
			if v, ok := b[k]; !ok || !sameJSON(a[k], v) {
				return false
			}
		}
		return true
	case []any:
		b, ok := b.([]any)
		if !ok || len(a) != len(b) {
			return false
		}
		for i := range a {
			if !sameJSON(a[i], b[i]) {
				return false
			}
		}
		return true
	case json.Number:
		b, ok := b.(json.Number)
		return ok && sameNumber(string(a), string(b))
	}
	return a == b
}

func sameNumber(a, b string) bool {
	if x, ok := new(big.Int).SetString(a, 10); ok {
		y, ok := new(big.Int).SetString(b, 10)
		return ok && x.Cmp(y) == 0
	}
	x, errX := json.Number(a).Float64()
	y, errY := json.Number(b).Float64()
	return errX == nil && errY == nil && x == y
}
