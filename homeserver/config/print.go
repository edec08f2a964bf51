package config

import (
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"
)

// lineWidth is where comments are wrapped.
const lineWidth = 110

// YAML is the configuration as a commented file: what differs from the defaults is set, every other key stands
// there as a comment with its default, so that the file keeps following the defaults of later versions. Secrets are
// never shown.
func (c *Config) YAML() string {
	var b strings.Builder
	b.WriteString("# Configuration of Myelin. A key that is a comment here has its default.\n" +
		"# Each can be set in the environment too, as MYELIN_SECTION_KEY, which comes before this file.\n")
	copied := *c
	standard := sections(Default())
	for i, s := range sections(&copied) {
		b.WriteByte('\n')
		comment(&b, "# ", s.doc)
		b.WriteString(s.name + ":\n")
		for j, k := range s.keys {
			for _, paragraph := range k.paragraphs() {
				comment(&b, "  # ", paragraph)
			}
			comment(&b, "  # ", "Allowed: "+k.value.allowed+".")
			now, initial := k.value.get(), standard[i].keys[j].value.get()
			switch {
			case slices.Equal(now, initial):
				b.WriteString("  #" + k.line(initial) + "\n")
			case k.secret:
				b.WriteString("  #" + k.name + ": is set, but not shown\n")
			default:
				b.WriteString("  " + k.line(now) + "\n")
			}
			if j < len(s.keys)-1 {
				b.WriteByte('\n')
			}
		}
	}
	return b.String()
}

// comment writes a paragraph as lines that begin with prefix.
func comment(b *strings.Builder, prefix, paragraph string) {
	for _, line := range wrap(paragraph, lineWidth-len(prefix)) {
		b.WriteString(prefix + line + "\n")
	}
}

// Markdown is the reference of all settings, docs/configuration.md.
func Markdown() string {
	var b strings.Builder
	b.WriteString(`# Configuration

Myelin runs without any. What should differ is set in one YAML file, ` + "`myelin.yaml`" + ` in the working directory
or what ` + "`--config`" + ` or ` + "`MYELIN_CONFIG`" + ` names, in which every key is optional:

    server:
      name: example.org
    client:
      address: 127.0.0.1:8008

Each key can also be set in the environment, as ` + "`MYELIN_SECTION_KEY`" + ` (` + "`MYELIN_SERVER_NAME`" + `), which comes
before the file; items of a list are separated by colons or commas there, and an empty variable counts as absent.

` + "`myelin config print`" + ` writes a commented file with everything that is set; ` + "`myelin config check`" + ` tells what is
wrong with a configuration, as the server itself does before it starts: unknown keys, bad values and settings that
contradict each other are refused, all at once, with their line. Variables that are named ` + "`MYELIN_…`" + ` and after no
section may be someone else's, so they are only named in the log when the server starts. Those by which Kubernetes
tells where services are (` + "`MYELIN_CLIENT_SERVICE_HOST`" + `, ` + "`MYELIN_CLIENT_PORT_8008_TCP`" + `) are ignored.
`)
	for _, s := range sections(Default()) {
		fmt.Fprintf(&b, "\n## %s\n\n%s\n", s.name, strings.Join(wrap(s.doc, lineWidth), "\n"))
		for _, k := range s.keys {
			initial := strings.Join(k.value.get(), ", ")
			if initial == "" {
				initial = "empty"
			} else {
				initial = "`" + initial + "`"
			}
			fmt.Fprintf(&b, "\n### %s.%s\n\n", s.name, k.name)
			for _, paragraph := range k.paragraphs() {
				b.WriteString(strings.Join(wrap(paragraph, lineWidth), "\n") + "\n\n")
			}
			facts := fmt.Sprintf("Default: %s. Allowed: %s. Environment: %#q.", initial, k.value.allowed, variable(s.name, k.name))
			b.WriteString(strings.Join(wrap(facts, lineWidth), "\n") + "\n")
		}
	}
	return b.String()
}

// line is the key with its value as a YAML line.
func (k *key) line(items []string) string {
	if k.value.separators != "" {
		quoted := make([]string, len(items))
		for i, item := range items {
			quoted[i] = quote(item)
		}
		return k.name + ": [" + strings.Join(quoted, ", ") + "]"
	}
	return k.name + ": " + quote(items[0])
}

// quote writes a scalar so that it is read back as the same text.
func quote(s string) string {
	if strings.ContainsAny(s, ",[]{}\n") { // what would end a plain scalar within a list, or take several lines
		return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`).Replace(s) + `"`
	}
	var text any
	if err := yaml.Unmarshal([]byte(s), &text); err == nil && (s == "true" || s == "false" || isNumber(text)) {
		return s // these are read by their text, whatever YAML takes them for
	}
	out, err := yaml.Marshal(s)
	if err != nil {
		return `""`
	}
	return strings.TrimSuffix(string(out), "\n")
}

func isNumber(v any) bool {
	switch v.(type) {
	case int, int64, uint64, float64:
		return true
	}
	return false
}

// paragraphs are the key's explanation without the indentation of keys.go.
func (k *key) paragraphs() []string {
	var all []string
	for paragraph := range strings.SplitSeq(k.doc, "\n\n") {
		all = append(all, strings.Join(strings.Fields(paragraph), " "))
	}
	return all
}

// wrap breaks text into lines of at most width bytes; a longer word has a line of its own.
func wrap(text string, width int) []string {
	var lines []string
	line := ""
	for word := range strings.FieldsSeq(text) {
		switch {
		case line == "":
			line = word
		case len(line)+1+len(word) <= width:
			line += " " + word
		default:
			lines, line = append(lines, line), word
		}
	}
	return append(lines, line)
}
