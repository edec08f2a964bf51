package preview

import (
	"net/url"
	"strings"
	"testing"
	"unicode/utf8"

	"golang.org/x/text/encoding/charmap"
	"golang.org/x/text/encoding/japanese"
)

var base = &url.URL{Scheme: "https", Host: "example.org", Path: "/a/page.html"}

func TestParse(t *testing.T) {
	for name, test := range map[string]struct {
		page          string
		want          map[string]string
		image, oembed string
	}{
		"open graph": {`<html><head><title>The Rock (1996)</title><meta property="og:title" content="The &amp; Rock"/><meta property="og:image" content="test.png">
			<meta property="og:image:width" content="99999"><meta property='og:type' content='video.movie'><meta property="og:title" content="second"></head>`,
			map[string]string{"og:title": "The & Rock", "og:type": "video.movie"}, "https://example.org/a/test.png", ""},
		"title and text": {"<title>\n A  title\n</title><body><nav>Menu</nav><p>Some <b>text</b>.</p><script>var x = '<p>no</p>'</script><p>More &lt;text&gt;</p>",
			map[string]string{"og:title": "A title", "og:description": "Some text . More <text>"}, "", ""},
		"meta":        {`<META NAME="Description" CONTENT="what it is"><meta name="twitter:image" content="//cdn.example/x.jpg"><title>T</title>`, map[string]string{"og:title": "T", "og:description": "what it is"}, "https://cdn.example/x.jpg", ""},
		"base":        {`<base href="https://other.example/dir/"><link rel="shortcut icon" href="fav.ico">`, map[string]string{}, "https://other.example/dir/fav.ico", ""},
		"oembed":      {`<link rel="alternate" type="application/json+oembed" href="/oembed?url=x">`, map[string]string{}, "", "https://example.org/oembed?url=x"},
		"bad picture": {`<meta property="og:image" content="javascript:alert(1)"><img src="data:image/png;base64,xxxx"><link rel=icon href="file:///etc/passwd">`, map[string]string{}, "", ""},
		"nothing":     {"", map[string]string{}, "", ""},
		"broken":      {"<meta property=og:title content='unclosed", map[string]string{}, "", ""},
	} {
		p := Parse([]byte(test.page), "text/html; charset=utf-8", base)
		if p.Image != test.image || p.OEmbed != test.oembed {
			t.Errorf("%s: image %q, oembed %q", name, p.Image, p.OEmbed)
		}
		for k, v := range test.want {
			if p.Tags[k] != v {
				t.Errorf("%s: %s is %q", name, k, p.Tags[k])
			}
		}
		if len(p.Tags) != len(test.want) {
			t.Errorf("%s: %v", name, p.Tags)
		}
	}
}

func TestCharsets(t *testing.T) {
	latin, _ := charmap.ISO8859_1.NewEncoder().String("<title>café</title>")
	sjis, _ := japanese.ShiftJIS.NewEncoder().String(`<meta charset="shift_jis"><title>日本語</title>`)
	cyrillic, _ := charmap.Windows1251.NewEncoder().String("<title>Привет</title>")
	for want, in := range map[string][2]string{
		"café": {latin, "text/html; charset=iso-8859-1"}, "日本語": {sjis, "text/html"}, "Привет": {cyrillic, "text/html; charset=windows-1251"},
		"ü": {"<title>ü</title>", "text/html"},
	} {
		if p := Parse([]byte(in[0]), in[1], base); p.Tags["og:title"] != want {
			t.Errorf("%q, want %q", p.Tags["og:title"], want)
		}
	}
	if text := Text([]byte("caf\xe9\n ok"), "text/plain; charset=iso-8859-1"); text != "café ok" {
		t.Errorf("text %q", text)
	}
}

func TestBounds(t *testing.T) {
	var page strings.Builder
	for range 5000 {
		page.WriteString(`<meta property="og:x` + strings.Repeat("y", page.Len()%70) + `" content="` + strings.Repeat("é ", 3000) + `">`)
		if page.Len() > 2<<20 {
			break
		}
	}
	page.WriteString(strings.Repeat("<div>", 100_000) + "<title>" + strings.Repeat("t", 100_000))
	p := Parse([]byte(page.String()), "text/html; charset=utf-8", base)
	if len(p.Tags) > maxTags+3 {
		t.Errorf("%d tags", len(p.Tags))
	}
	for k, v := range p.Tags {
		if len(k) > maxName || utf8.RuneCountInString(v) > maxText+1 || !utf8.ValidString(v) {
			t.Errorf("%s has %d characters", k, utf8.RuneCountInString(v))
		}
	}
}

func TestOEmbed(t *testing.T) {
	p := Parse([]byte("<title>mine</title>"), "text/html", base)
	p.Add([]byte(`{"title":"theirs","provider_name":"Tube","thumbnail_url":"/t.jpg","author_name":"somebody"}`), base)
	if p.Tags["og:title"] != "mine" || p.Tags["og:site_name"] != "Tube" || p.Tags["article:author"] != "somebody" || p.Image != "https://example.org/t.jpg" {
		t.Errorf("%+v", p)
	}
	for _, bad := range []string{"", "[]", `{"title":1}`, `{"thumbnail_url":"file:///x","type":"photo","url":"gopher://x"}`} {
		q := &Page{Tags: map[string]string{}}
		if q.Add([]byte(bad), base); len(q.Tags) > 0 || q.Image != "" {
			t.Errorf("%s: %+v", bad, q)
		}
	}
}

func TestRobots(t *testing.T) {
	const file = `
# a comment
User-agent: *
Disallow: /private
Allow: /private/open
Disallow: /*.pdf$
Disallow:

User-Agent: Myelin
User-agent: other
disallow: /no-bots # for us
Disallow: /a*/z
`
	general, named := ParseRobots([]byte(file), "someone"), ParseRobots([]byte(file), "myelin")
	for path, want := range map[string][2]bool{
		"/": {true, true}, "/private/x": {false, true}, "/private/open/x": {true, true}, "/x.pdf": {false, true}, "/x.pdf?y": {true, true},
		"/no-bots": {true, false}, "/abc/d/z": {true, false}, "/abc/d": {true, true},
	} {
		if got := [2]bool{general.Allowed(path), named.Allowed(path)}; got != want {
			t.Errorf("%s: %v, want %v", path, got, want)
		}
	}
	if !ParseRobots(nil, "x").Allowed("/") || ParseRobots([]byte("User-agent:*\nDisallow:/"), "x").Allowed("/") {
		t.Error("no rules, or one for everything")
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`<meta property="og:title" content="x"><title>y`), "text/html")
	f.Fuzz(func(t *testing.T, body []byte, contentType string) {
		p := Parse(body, contentType, base)
		p.Add(body, base)
		for _, v := range p.Tags {
			if !utf8.ValidString(v) {
				t.Errorf("%q", v)
			}
		}
		ParseRobots(body, "x").Allowed(contentType)
	})
}
