package mediaapi

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os/exec"
	"strconv"
	"strings"

	"github.com/myelin-im/myelin/mediaapi/thumbnail"
)

// hasPicture tells whether the external program may find a picture in media of a type.
func hasPicture(typ string) bool {
	return strings.HasPrefix(typ, "video/") || strings.HasPrefix(typ, "image/avif") || strings.HasPrefix(typ, "image/hei")
}

// maxStill bounds what the external program returns, in bytes.
const maxStill = 64 << 20

// frameOf has the external program find a picture in what this one cannot read, and makes a thumbnail of that.
//
// The program sees one file and is told to open no other: a playlist could name anything on this machine or network.
func (a *API) frameOf(ctx context.Context, src io.ReadSeeker, spec thumbnail.Spec, limits thumbnail.Limits) (*thumbnail.Result, error) {
	if _, err := src.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	s, err := a.area.New()
	if err != nil {
		return nil, err
	}
	defer s.Close()
	if _, err := s.ReadFrom(src); err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, a.Thumbnails.FFmpeg, "-v", "error", "-nostdin", "-threads", "1", // #nosec G204: the operator names it
		"-max_pixels", strconv.FormatInt(min(limits.Pixels, math.MaxInt32), 10),
		"-protocol_whitelist", "file", "-format_whitelist", "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,ogg,avi,flv,mpeg,mpegts,avif,heif",
		"-i", "file:"+s.Path(), "-an", "-frames:v", "1", "-vf", "scale='min(4096,iw)':-2", "-f", "image2pipe", "-c:v", "png", "pipe:1")
	cmd.Env = []string{}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", a.Thumbnails.FFmpeg, err)
	}
	var still bytes.Buffer
	n, err := still.ReadFrom(io.LimitReader(out, maxStill+1))
	if n > maxStill {
		_ = cmd.Process.Kill()
		err = thumbnail.ErrTooLarge
	}
	if end := cmd.Wait(); err == nil && end != nil {
		err = fmt.Errorf("%w: %w", thumbnail.ErrUnsupported, end)
	}
	if err != nil {
		return nil, err
	}
	picture := bytes.NewReader(still.Bytes())
	r, err := thumbnail.Make(ctx, picture, spec, limits)
	if errors.Is(err, thumbnail.ErrOriginal) { // smaller than asked for: the frame itself
		var info *thumbnail.Info
		if info, err = thumbnail.Probe(picture); err == nil {
			r = &thumbnail.Result{Type: info.Type, Data: still.Bytes(), Width: info.Width, Height: info.Height}
		}
	}
	return r, err
}
