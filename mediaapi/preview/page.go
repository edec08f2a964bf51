// Package preview reads what a web page says of itself: Open Graph, titles, descriptions, pictures, and where its
// oEmbed document is. It fetches nothing.
//
// Pages are hostile: the number and length of what is taken from one are bounded, and it is read token by token, so that
// no nesting goes deep.
//
// See https://ogp.me, https://oembed.com and RFC 9309 (robots.txt).
package preview

import (
	"bytes"
	"encoding/json"
	"io"
	"mime"
	"net/url"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/html"
	"golang.org/x/net/html/atom"
	"golang.org/x/net/html/charset"
)

const (
	maxTags  = 60   // of Open Graph
	maxName  = 60   // bytes of a property's name
	maxText  = 1000 // characters of a property
	maxProse = 500  // characters of a description made of a page's text
)

// Page is what was found.
type Page struct {
	// Tags are the Open Graph properties, by their names, and what stands in for missing ones.
	Tags map[string]string
	// Image is the address of a picture, absolute; empty: none.
	Image string
	// OEmbed is the address of the page's oEmbed document, absolute; empty: none.
	OEmbed string
	// NoIndex is set by pages that do not want to be read by machines.
	NoIndex bool
}

// Parse reads the beginning of a page from an address, with the Content-Type that came with it.
func Parse(body []byte, contentType string, base *url.URL) *Page {
	p := &parser{page: &Page{Tags: map[string]string{}}, base: base, fallback: map[string]string{}}
	decoder, _, _ := charset.DetermineEncoding(body, contentType)
	p.read(html.NewTokenizer(decoder.NewDecoder().Reader(bytes.NewReader(body))))
	p.finish()
	return p.page
}

type parser struct {
	page     *Page
	base     *url.URL
	fallback map[string]string // names of meta elements, and the title
	title    strings.Builder
	prose    strings.Builder
	favicon  string
	first    string // the first picture in the text
}

// silent are elements whose text is not for readers.
var silent = map[atom.Atom]bool{
	atom.Script: true, atom.Style: true, atom.Noscript: true, atom.Svg: true, atom.Header: true, atom.Nav: true, atom.Aside: true, atom.Footer: true,
	atom.Textarea: true, atom.Button: true, atom.Select: true, atom.Iframe: true, atom.Template: true,
}

func (p *parser) read(z *html.Tokenizer) {
	z.SetMaxBuf(1 << 20)
	inTitle, inBody, mute := false, false, 0
	for {
		kind := z.Next()
		switch kind {
		case html.ErrorToken:
			return
		case html.StartTagToken, html.SelfClosingTagToken, html.EndTagToken:
			name, more := z.TagName()
			a := atom.Lookup(name)
			start := kind != html.EndTagToken
			switch {
			case a == atom.Title && mute == 0:
				inTitle = kind == html.StartTagToken
			case a == atom.Body && start:
				inBody = true
			case silent[a] && kind == html.StartTagToken:
				mute++
			case silent[a] && kind == html.EndTagToken:
				mute = max(mute-1, 0)
			}
			if start && more && (a == atom.Meta || a == atom.Link || a == atom.Base || a == atom.Img) {
				p.element(a, attributes(z))
			}
			p.space()
		case html.TextToken:
			switch text := z.Text(); {
			case inTitle && p.title.Len() < 4*maxText:
				p.title.Write(text)
			case inBody && mute == 0 && p.prose.Len() < 8*maxProse:
				p.prose.Write(text)
			}
		}
	}
}

// space keeps the words of neighbouring elements apart.
func (p *parser) space() {
	if p.prose.Len() > 0 && p.prose.Len() < 8*maxProse {
		p.prose.WriteByte(' ')
	}
}

// attributes reads a few attributes of an element.
func attributes(z *html.Tokenizer) map[string]string {
	list := map[string]string{}
	for range 20 {
		key, value, more := z.TagAttr()
		if name := string(key); name != "" && list[name] == "" {
			list[name] = string(value)
		}
		if !more {
			break
		}
	}
	return list
}

func (p *parser) element(a atom.Atom, attr map[string]string) {
	switch a {
	case atom.Base:
		if u, err := p.base.Parse(attr["href"]); err == nil && attr["href"] != "" {
			p.base = u
		}
	case atom.Img:
		if p.first == "" && attr["src"] != "" && attr["width"] != "1" {
			p.first = attr["src"]
		}
	case atom.Link:
		rel := strings.Fields(strings.ToLower(attr["rel"]))
		for _, r := range rel {
			switch {
			case r == "alternate" && attr["type"] == "application/json+oembed" && p.page.OEmbed == "":
				p.page.OEmbed = attr["href"]
			case r == "icon" && p.favicon == "" || r == "apple-touch-icon":
				p.favicon = attr["href"]
			}
		}
	case atom.Meta:
		p.meta(attr)
	}
}

func (p *parser) meta(attr map[string]string) {
	content := attr["content"]
	if property := attr["property"]; property != "" {
		switch {
		case !strings.HasPrefix(property, "og:") && !strings.HasPrefix(property, "article:"):
			p.note(property, content)
		case len(p.page.Tags) < maxTags && len(property) <= maxName && p.page.Tags[property] == "":
			if text := clean(content, maxText); text != "" {
				p.page.Tags[property] = text
			}
		}
	}
	p.note(strings.ToLower(attr["name"]), content)
}

// note remembers what may stand in for Open Graph.
func (p *parser) note(name, content string) {
	switch name {
	case "description", "twitter:title", "twitter:description", "twitter:image", "twitter:image:src", "application-name", "author":
		if p.fallback[name] == "" {
			p.fallback[name] = clean(content, maxText)
		}
	case "robots", "myelin":
		if lower := strings.ToLower(content); strings.Contains(lower, "noindex") || strings.Contains(lower, "none") {
			p.page.NoIndex = true
		}
	}
}

// finish fills in what the page did not say by Open Graph, and makes addresses absolute.
func (p *parser) finish() {
	tags := p.page.Tags
	set := func(name string, values ...string) {
		for _, v := range values {
			if tags[name] == "" && v != "" {
				tags[name] = v
			}
		}
	}
	set("og:title", p.fallback["twitter:title"], clean(p.title.String(), maxText))
	set("og:description", p.fallback["twitter:description"], p.fallback["description"], clean(html.UnescapeString(p.prose.String()), maxProse))
	set("og:site_name", p.fallback["application-name"])
	for _, image := range []string{
		tags["og:image:secure_url"], tags["og:image"], tags["og:image:url"], p.fallback["twitter:image"], p.fallback["twitter:image:src"], p.first, p.favicon,
	} {
		if p.page.Image = p.absolute(image); p.page.Image != "" {
			break
		}
	}
	p.page.OEmbed = p.absolute(p.page.OEmbed)
	for name := range tags { // what is known of the picture will be said of its copy
		if name == "og:image" || strings.HasPrefix(name, "og:image:") {
			delete(tags, name)
		}
	}
}

func (p *parser) absolute(address string) string { return absolute(p.base, address) }

// absolute resolves an address in a page; nothing if it is not of the web.
func absolute(base *url.URL, address string) string {
	address = strings.TrimSpace(address)
	if address == "" {
		return ""
	}
	u, err := base.Parse(address)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" {
		return ""
	}
	return u.String()
}

// clean takes a text into one line of at most so many characters.
func clean(text string, limit int) string {
	text = strings.Join(strings.Fields(strings.ToValidUTF8(strings.ReplaceAll(text, "\x00", ""), "")), " ")
	if utf8.RuneCountInString(text) <= limit {
		return text
	}
	runes := []rune(text)[:limit]
	cut := string(runes)
	if i := strings.LastIndexByte(cut, ' '); i > len(cut)*3/4 {
		cut = cut[:i]
	}
	return cut + "…"
}

// oEmbed is the part of an oEmbed document that is used.
type oEmbed struct {
	Type         string `json:"type"`
	Title        string `json:"title"`
	AuthorName   string `json:"author_name"`
	ProviderName string `json:"provider_name"`
	Thumbnail    string `json:"thumbnail_url"`
	URL          string `json:"url"`
}

// Add fills what a page does not say with its oEmbed document.
func (p *Page) Add(document []byte, base *url.URL) {
	var o oEmbed
	if json.Unmarshal(document, &o) != nil {
		return
	}
	for name, value := range map[string]string{"og:title": o.Title, "og:site_name": o.ProviderName, "article:author": o.AuthorName} {
		if text := clean(value, maxText); text != "" && p.Tags[name] == "" {
			p.Tags[name] = text
		}
	}
	image := o.Thumbnail
	if image == "" && o.Type == "photo" {
		image = o.URL
	}
	if address := absolute(base, image); address != "" && p.Image == "" {
		p.Image = address
	}
}

// IsHTML tells whether a Content-Type is that of a page.
func IsHTML(contentType string) bool {
	typ, _, err := mime.ParseMediaType(contentType)
	return err == nil && (typ == "text/html" || typ == "application/xhtml+xml")
}

// Text makes a description of a plain text.
func Text(body []byte, contentType string) string {
	decoder, _, _ := charset.DetermineEncoding(body, contentType)
	text, err := io.ReadAll(decoder.NewDecoder().Reader(bytes.NewReader(body)))
	if err != nil {
		return ""
	}
	return clean(string(text), maxProse)
}
