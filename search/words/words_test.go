package words

import (
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestAppend(t *testing.T) {
	for _, test := range []struct{ text, want string }{
		{"", ""},
		{"Hello, WORLD! don't", "hello world dont"},
		{"snake_case e-mail a.b@example.org", "snake case e mail a b example org"},
		{"Crème BRÛLÉE naïve Ångström", "creme brulee naive angstrom"},
		{"Straße STRASSE", "strasse strasse"},
		{"ΟΔΥΣΣΕΎΣ οδυσσεύς", "οδυσσευσ οδυσσευσ"},
		{"Ёлка йод", "елка йод"},
		{"ＦＵＬＬ　ｗｉｄｔｈ １２", "full width 12"},
		{"ﬁne ½", "fine 12"},
		{"हिन्दी में", "हिन्दी में"},
		{"شكرا", "شكرا"},
		{"黒猫", "黒猫 猫"},
		{"猫", "猫"},
		{"東京タワー2024年", "東京 京タ タワ ワー ー 2024 年"},
		{"ｶﾞﾗｽ", "ガラ ラス ス"},
		{"한국어", "한국 국어 어"},
		{"iPhoneを買う", "iphone を買 買う う"},
		{"สวัสดี", "สว วั ัส สด ดี ี"},
		{"party 🎉🎉 ❤️", "party 🎉 🎉 ❤"},
		{"\x00a\xffb\u202e", "a b"},
		{strings.Repeat("x", 50), strings.Repeat("x", 40)},
		{"\u0301 '", ""},
	} {
		if got := strings.Join(Append(nil, test.text), " "); got != test.want {
			t.Errorf("Append(%q) = %q, want %q", test.text, got, test.want)
		}
	}
	if n := len(Append([]string{"one"}, strings.Repeat("字", 5000))); n != MaxTerms+1 {
		t.Errorf("%d terms of a long text", n)
	}
}

func TestQuery(t *testing.T) {
	for _, test := range []struct {
		text string
		want []Word
	}{
		{"", nil},
		{"...", nil},
		{"Café café CAFE", []Word{{"café", []string{"cafe"}, false}}},
		{"猫", []Word{{"猫", []string{"猫"}, true}}},
		{"黒猫屋 x", []Word{{"黒猫屋", []string{"黒猫", "猫屋"}, false}, {"x", []string{"x"}, false}}},
	} {
		got := Query(test.text)
		same := slices.EqualFunc(got, test.want, func(a, b Word) bool {
			return a.Surface == b.Surface && slices.Equal(a.Terms, b.Terms) && a.Prefix == b.Prefix
		})
		if !same {
			t.Errorf("Query(%q) = %v, want %v", test.text, got, test.want)
		}
	}
	var many strings.Builder
	for i := range 100 {
		many.WriteRune(rune('Ā' + 2*i))
		many.WriteString("ж ")
	}
	if n := len(Query(many.String())); n > MaxWords {
		t.Errorf("%d words", n)
	}
}

// FuzzAppend: terms hold nothing that an index could misunderstand, and what a text says is found by asking for it.
func FuzzAppend(f *testing.F) {
	for _, text := range []string{"Hello, WORLD!", "黒猫 ｶﾞ", "Ёлка’s", "\x00'\"_:&|*", "ﷺ", "한국어", "İi̇"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		terms := Append(nil, text)
		for _, term := range terms {
			if term == "" || !utf8.ValidString(term) || strings.ContainsAny(term, "_'\"\\ \x00:*&|()!<>") {
				t.Fatalf("term %q of %q", term, text)
			}
			if utf8.RuneCountInString(term) > 4*maxLetters {
				t.Fatalf("long term %q", term)
			}
		}
		if len(terms) >= MaxTerms {
			return
		}
		all := " " + strings.Join(terms, " ") + " "
		for _, w := range Query(text) {
			if len(w.Terms) == MaxWords {
				continue
			}
			phrase := " " + strings.Join(w.Terms, " ")
			if !strings.Contains(all, phrase) {
				t.Errorf("%q is not in %q, the terms of %q", phrase, all, text)
			}
		}
	})
}
