package homeserver

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/myelin-im/myelin/homeserver/config"
)

// TestCheckReadsFiles makes files with which a server would not start.
func TestCheckReadsFiles(t *testing.T) {
	folder := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(folder, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	const service = "id: irc\nurl: null\nas_token: a\nhs_token: b\nsender_localpart: irc\nnamespaces: {}\n"
	good, nameless := write("irc.yaml", service), write("nameless.yaml", strings.TrimPrefix(service, "id: irc\n"))
	write("templates/register.txt", "{{.Nothing")
	key := write("key.p8", "no key")
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name      string
		variables []string
		wanted    string
	}{
		{"nothing", nil, ""},
		{"application service", []string{"MYELIN_APPSERVICES_FILES=" + good}, ""},
		{"application service without id", []string{"MYELIN_APPSERVICES_FILES=" + nameless}, "appservices.files: load application service: " + nameless},
		{"application service twice", []string{"MYELIN_APPSERVICES_FILES=" + good + "," + good}, "appservices.files: two application services"},
		{"no folder of templates", []string{"MYELIN_EMAIL_TEMPLATES=" + folder + "/none"}, "MYELIN_EMAIL_TEMPLATES: email.templates: "},
		{"bad template", []string{"MYELIN_EMAIL_TEMPLATES=" + folder + "/templates"}, "email.templates: "},
		{"no scanner", []string{"MYELIN_MEDIA_SCAN_COMMAND=" + folder + "/scan"}, "MYELIN_MEDIA_SCAN_COMMAND: media.scan_command: exec: "},
		{"scanner that cannot be run", []string{"MYELIN_MEDIA_SCAN_COMMAND=" + good}, "media.scan_command: exec: "},
		{"no ffmpeg", []string{"MYELIN_THUMBNAILS_FFMPEG=no-such-program"}, "MYELIN_THUMBNAILS_FFMPEG: thumbnails.ffmpeg: exec: "},
		{"programs", []string{"MYELIN_MEDIA_SCAN_COMMAND=" + program, "MYELIN_THUMBNAILS_FFMPEG=" + program}, ""},
		{"bad key", []string{"MYELIN_PUSH_APNS_APP_ID=a", "MYELIN_PUSH_APNS_TOPIC=a", "MYELIN_PUSH_APNS_KEY=" + key, "MYELIN_PUSH_APNS_KEY_ID=b", "MYELIN_PUSH_APNS_TEAM_ID=c"}, "push: set up APNs"},
	} {
		t.Run(test.name, func(t *testing.T) {
			cfg, err := config.Load("", test.variables)
			if err != nil {
				t.Fatal(err)
			}
			cfg.Server.DataDir = filepath.Join(folder, "data")
			err = Check(cfg)
			if test.wanted == "" && err != nil || test.wanted != "" && (err == nil || !strings.Contains(err.Error(), test.wanted)) {
				t.Errorf("said %v, wanted %q", err, test.wanted)
			}
		})
	}
	if _, err := os.Stat(filepath.Join(folder, "data")); err == nil {
		t.Error("a check made the data folder")
	}
}
