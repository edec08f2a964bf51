package config

import (
	"errors"
	"fmt"
	"path"
	"regexp"
	"strings"
	"time"
)

// Media is the content repository.
type Media struct {
	Folder       string // empty: in the data folder
	MaxUpload    int64  // bytes
	MaxRemote    int64  // bytes
	Frozen       bool
	PendingFor   time.Duration
	MaxPending   int
	UserQuota    int64 // bytes; 0: none
	ScanCommand  string
	Linking      bool
	LocalUnused  time.Duration // this and the next three: 0: forever
	LocalAge     time.Duration
	RemoteUnused time.Duration
	RemoteAge    time.Duration

	Thumbnails Thumbnails
	Previews   Previews
	S3         S3
}

// Thumbnails are small pictures of large ones.
type Thumbnails struct {
	MaxPixels int
	MaxFrames int
	Workers   int      // 0: one per processor
	Early     []string // such as 32x32-crop
	FFmpeg    string   // empty: none
}

// Previews are previews of URLs.
type Previews struct {
	Enabled      bool
	AllowPrivate bool
	Deny, Allow  []string // patterns of host names; an empty Allow allows all
	Keep         time.Duration
	MaxImage     int64 // bytes
	Robots       bool
	Languages    string
}

// S3 is a bucket for media.
type S3 struct {
	Endpoint             string // empty: media is in a folder
	Region               string
	Bucket, Prefix       string
	AccessKey, SecretKey string
	PathStyle, Redirect  bool
}

const mediaDoc = "Uploads and downloads. See media.md."

// mediaKeys are the settings of the content repository.
func mediaKeys(m *Media) []key {
	return []key{
		{"folder", "", false, `
			The folder for uploaded files. Empty: media in server.data_dir. It is made if it is missing.

			Set it to keep media on a larger disk than the database.`,
			optional(&m.Folder, "a path", nil)},
		{"max_upload", "100MiB", false, `
			The largest file that can be uploaded. A reverse proxy may allow less.

			Raise it if people share videos.`,
			size(&m.MaxUpload, 1<<10, 1<<40)},
		{"max_remote", "100MiB", false, `
			The largest file that is fetched from another server.`,
			size(&m.MaxRemote, 1<<10, 1<<40)},
		{"freeze_unauthenticated", "true", false, `
			Whether what is stored from now on can be had by users and servers that log in alone. What was stored while
			this was false stays open to everybody who knows its address.

			Set it to false if people use clients, or bridges show files to networks, that do not know authenticated media.`,
			truth(&m.Frozen)},
		{"pending_lifetime", "24h", false, `
			How long a client may take to upload to an address that it has created before.`,
			duration(&m.PendingFor, time.Minute, 30*day)},
		{"max_pending", "30", false, `
			How many such addresses one user may have without an upload.

			Raise it if bridges are told to wait.`,
			number(&m.MaxPending, 1, 100_000)},
		{"user_quota", "0B", false, `
			How much one user may store. 0B: any amount.`,
			size(&m.UserQuota, 0, 1<<50)},
		{"scan_command", "", false, `
			A program that looks at each new file, uploaded or fetched, before it is stored; the file's path is its argument.
			It exits with 0 if the file is fine and with 1 if it is not. With any other status nothing is stored. Encrypted
			files tell it nothing.

			Set it to a script around a virus scanner.`,
			optional(&m.ScanCommand, "a path", nil)},
		{"linking", "false", false, `
			Whether clients may upload files that those alone can get who see the event to which they are attached (MSC3911, a
			proposal).

			Set it to true if your clients do so.`,
			truth(&m.Linking)},
		{"local_unused_lifetime", "0s", false, `
			How long uploaded files are kept after somebody last asked for them. 0s: forever. Files that are gone cannot be
			had again, and messages keep naming them.`,
			duration(&m.LocalUnused, 0, 100*365*day)},
		{"local_lifetime", "0s", false, `
			How long uploaded files are kept at all. 0s: forever.

			Set it where rules demand that files are deleted.`,
			duration(&m.LocalAge, 0, 100*365*day)},
		{"remote_unused_lifetime", "90d", false, `
			How long files of other servers are kept after somebody last asked for them. 0s: forever. They are fetched again
			if they are needed.

			Lower it to save disk.`,
			duration(&m.RemoteUnused, 0, 100*365*day)},
		{"remote_lifetime", "0s", false, `
			How long files of other servers are kept at all. 0s: forever.`,
			duration(&m.RemoteAge, 0, 100*365*day)},
	}
}

// thumbnailKeys are the settings of thumbnails.
func thumbnailKeys(t *Thumbnails) []key {
	return []key{
		{"max_pixels", "60000000", false, `
			The largest picture of which thumbnails are made, width times height. Making one takes four bytes for each.

			Lower it if memory is short.`,
			number(&t.MaxPixels, 1<<16, 1<<30)},
		{"max_frames", "300", false, `
			The most frames of an animation that stays one as a thumbnail.`,
			number(&t.MaxFrames, 1, 10_000)},
		{"workers", "0", false, `
			How many thumbnails are made at the same time; others wait. 0: as many as there are processors.`,
			number(&t.Workers, 0, 256)},
		{"early", "", false, `
			Thumbnails that are made as soon as a picture is uploaded, as width, height and method: 96x96-crop,
			800x600-scale. Others are made when they are first asked for. In the environment, they are separated by commas.

			Set it if people wait for the first thumbnails of large pictures.`,
			list(&t.Early, "sizes such as 96x96-crop and 800x600-scale", ",", checkThumbnail, func(s string) string { return s })},
		{"ffmpeg", "", false, `
			The program ffmpeg, which finds the picture of videos, AVIF and HEIC. Empty: they have no thumbnails.

			Set it to ffmpeg if that is installed. It reads files of strangers: keep it up to date.`,
			optional(&t.FFmpeg, "a path, or a name in PATH", nil)},
	}
}

// previewKeys are the settings of previews of URLs.
func previewKeys(p *Previews) []key {
	return []key{
		{"enabled", "true", false, `
			Whether users may ask what is at a URL. This server fetches the page then, so its owner sees this server's address
			and not the user's.

			Set it to false if this server is to reach nothing but other servers.`,
			truth(&p.Enabled)},
		{"allow_private_addresses", "false", false, `
			Whether pages may be on loopback, link-local and private addresses, and at any port. Every user could look at them.

			Set it to true only in closed networks.`,
			truth(&p.AllowPrivate)},
		{"deny", "", false, `
			Host names of which there are no previews; * stands for any characters.`,
			list(&p.Deny, "host names, in which * is a wildcard", ",", checkHostPattern, func(s string) string { return s })},
		{"allow", "", false, `
			The only host names of which there are previews, written as in deny. Empty: all.`,
			list(&p.Allow, "host names, in which * is a wildcard", ",", checkHostPattern, func(s string) string { return s })},
		{"keep", "1h", false, `
			How long a preview is kept before the page is fetched again.`,
			duration(&p.Keep, time.Minute, 30*day)},
		{"max_image", "10MiB", false, `
			The largest picture of a page that is fetched.`,
			size(&p.MaxImage, 1<<10, 1<<30)},
		{"robots", "true", false, `
			Whether pages are left alone whose site says so in robots.txt.

			Set it to false for more previews: it is people who ask for them.`,
			truth(&p.Robots)},
		{"languages", "en", false, `
			The languages in which pages are asked for, as in Accept-Language.`,
			text(&p.Languages, "such as de, en;q=0.5", checkHeader)},
	}
}

// s3Keys are the settings of a bucket.
func s3Keys(b *S3) []key {
	return []key{
		{"endpoint", "", false, `
			The S3 server, as a URL. Empty: media is kept in media.folder, which is used for uploads under way in any case.

			Set it when media outgrows the disk. Files are not moved from one place to the other.`,
			optional(&b.Endpoint, "an http or https URL", checkHTTPURL)},
		{"region", "", false, `
			The bucket's region. Empty: the server is asked.`,
			optional(&b.Region, "any text", nil)},
		{"bucket", "", false, `
			The bucket. It must exist, and only this server may write to it.`,
			optional(&b.Bucket, "a name", nil)},
		{"prefix", "", false, `
			What stands before the names of all objects, as a folder.`,
			optional(&b.Prefix, "any text", nil)},
		{"access_key", "", true, `
			The name of the key with which requests are signed.`,
			optional(&b.AccessKey, "any text", nil)},
		{"secret_key", "", true, `
			The key itself.`,
			optional(&b.SecretKey, "any text", nil)},
		{"path_style", "false", false, `
			Whether the bucket stands in the path of URLs and not in the host name.

			Set it to true for most servers that are not Amazon's.`,
			truth(&b.PathStyle)},
		{"redirect", "false", false, `
			Whether clients and other servers are sent to the bucket, with URLs that work for five minutes.

			Set it to true if they can reach the S3 server, to take the traffic off this one.`,
			truth(&b.Redirect)},
	}
}

var thumbnailSize = regexp.MustCompile(`^[1-9][0-9]{0,3}x[1-9][0-9]{0,3}-(crop|scale)$`)

func checkThumbnail(s string) (string, error) {
	if !thumbnailSize.MatchString(s) {
		return s, fmt.Errorf("%q is not such a size", s)
	}
	return s, nil
}

func checkHostPattern(s string) (string, error) {
	if _, err := path.Match(s, ""); err != nil || s == "" || strings.ContainsAny(s, "/:@ ") {
		return s, fmt.Errorf("%q is no host name", s)
	}
	return s, nil
}

func checkHeader(s string) error {
	if strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' }) {
		return errors.New("it has other characters than ASCII")
	}
	return nil
}
