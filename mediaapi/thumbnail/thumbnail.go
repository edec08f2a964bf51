// Package thumbnail makes small pictures of large ones: JPEG, PNG, GIF and WebP, still or animated. It knows nothing of
// Matrix, files or processes.
//
// Every picture is hostile. Its size is read before it is decoded, and nothing is decoded that would take more memory
// than Limits allow; what a format repeats (frames) is counted first. Decoding stops when the context ends.
//
// A JPEG, the format of photographs, is decoded at the size that is just large enough, which leaves out most of the
// work (see decodeScaled), and stays in its own colour space until it is encoded again.
package thumbnail

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/gif"
	"image/jpeg"
	"image/png"
	"io"

	"golang.org/x/image/webp"
)

var (
	// ErrUnsupported is returned for what is no picture in a known format, or a broken one.
	ErrUnsupported = errors.New("thumbnail: not a picture that can be read")
	// ErrTooLarge is returned for pictures beyond the limits.
	ErrTooLarge = errors.New("thumbnail: the picture is too large")
	// ErrOriginal says that the picture itself is what was asked for: it is not larger than the thumbnail would be.
	ErrOriginal = errors.New("thumbnail: the picture is small enough")
)

// Spec is what is asked for.
type Spec struct {
	// Width and Height are in pixels, at least 1.
	Width, Height int
	// Crop cuts the picture to the aspect that is asked for; otherwise it keeps its own and covers Width and Height.
	Crop bool
	// Animated keeps a moving picture moving.
	Animated bool
}

// Limits bound the work.
type Limits struct {
	// Pixels bounds width times height of what is decoded; pictures of more than 32 bits a pixel count for more.
	Pixels int64
	// Frames bounds animations; those with more become stills.
	Frames int
}

// Result is a thumbnail.
type Result struct {
	// Type is image/jpeg, image/png or image/gif.
	Type string
	// Data is the file.
	Data []byte
	// Width and Height are in pixels.
	Width, Height int
}

// Info is what a picture says of itself.
type Info struct {
	// Type is its media type.
	Type string
	// Width and Height are in pixels, as they are to be shown.
	Width, Height int
	// model is what the decoder will make of it.
	model color.Model
	// orientation is how it is to be turned, see exif.go.
	orientation int
	// animated tells of several frames.
	animated bool
}

// quality is that of JPEG thumbnails.
const quality = 82

// Probe reads the beginning of a picture.
func Probe(r io.ReadSeeker) (*Info, error) {
	head := make([]byte, 16)
	if err := rewind(r); err != nil {
		return nil, err
	}
	n, _ := io.ReadFull(r, head)
	if err := rewind(r); err != nil {
		return nil, err
	}
	info := &Info{orientation: 1}
	var c image.Config
	var err error
	switch head = head[:n]; {
	case bytes.HasPrefix(head, []byte("\xff\xd8")):
		info.Type = "image/jpeg"
		c, err = jpeg.DecodeConfig(r)
		info.orientation = orientationOf(r)
	case bytes.HasPrefix(head, []byte("\x89PNG\r\n\x1a\n")):
		info.Type = "image/png"
		c, err = png.DecodeConfig(r)
	case bytes.HasPrefix(head, []byte("GIF8")):
		info.Type = "image/gif"
		c, err = gif.DecodeConfig(r)
		info.animated = true
	case len(head) == 16 && string(head[:4]) == "RIFF" && string(head[8:12]) == "WEBP":
		info.Type = "image/webp"
		var still bool
		if c.Width, c.Height, still, err = webpSize(r); err == nil && !still {
			info.animated = true
		} else if err == nil {
			err = rewind(r)
		}
		c.ColorModel = color.NRGBAModel
	default:
		return nil, ErrUnsupported
	}
	if err != nil || c.Width <= 0 || c.Height <= 0 {
		return nil, fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	info.Width, info.Height, info.model = c.Width, c.Height, c.ColorModel
	if info.orientation >= 5 {
		info.Width, info.Height = c.Height, c.Width
	}
	return info, nil
}

func rewind(r io.Seeker) error {
	_, err := r.Seek(0, io.SeekStart)
	return err
}

// pixels is how many pixels of 32 bits a picture takes.
func (i *Info) pixels() int64 {
	n := int64(i.Width) * int64(i.Height)
	switch i.model {
	case color.RGBA64Model, color.NRGBA64Model:
		n *= 2
	}
	return n
}

// Make makes a thumbnail. Errors wrap one of this package's, or are those of the context or the reader.
func Make(ctx context.Context, src io.ReadSeeker, spec Spec, limits Limits) (*Result, error) {
	r := &reader{ctx, src}
	info, err := Probe(r)
	if err != nil {
		return nil, errors.Join(ctx.Err(), err)
	}
	if info.pixels() > limits.Pixels || info.Width > 1<<16 || info.Height > 1<<16 {
		return nil, ErrTooLarge
	}
	f := fit(info.Width, info.Height, spec)
	if info.animated {
		frames, err := openFrames(r, info, limits)
		if err != nil {
			return nil, errors.Join(ctx.Err(), err)
		}
		if spec.Animated && frames.count() > 1 {
			if f.whole {
				return nil, ErrOriginal
			}
			return animate(ctx, frames, f)
		}
		if frames.count() == 1 && f.whole {
			return nil, ErrOriginal
		}
		still, err := frames.next()
		if err != nil {
			return nil, errors.Join(ctx.Err(), fmt.Errorf("%w: %w", ErrUnsupported, err))
		}
		return encodeRGBA(shrink(rowsOf(still), f), true)
	}
	if f.whole {
		return nil, ErrOriginal
	}
	if err := rewind(r); err != nil {
		return nil, err
	}
	result, err := still(r, info, f)
	if err != nil {
		return nil, errors.Join(ctx.Err(), fmt.Errorf("%w: %w", ErrUnsupported, err))
	}
	return result, nil
}

// still makes the thumbnail of a picture that does not move.
func still(r io.ReadSeeker, info *Info, f fitting) (*Result, error) {
	switch info.Type {
	case "image/jpeg":
		return photo(r, info, f)
	case "image/png":
		img, err := png.Decode(r)
		if err != nil {
			return nil, err
		}
		return encodeRGBA(shrink(rowsOf(img), f), true)
	}
	img, err := webp.Decode(r)
	if err != nil {
		return nil, err
	}
	out := shrink(rowsOf(img), f)
	return encodeRGBA(out, !out.Opaque())
}

// photo makes the thumbnail of a JPEG.
func photo(r io.ReadSeeker, info *Info, f fitting) (*Result, error) {
	turned := f.unturned(info.orientation) // in the picture as it is stored
	img, turned, err := decodeScaled(r, turned)
	if errors.Is(err, errNotPlain) {
		if err := rewind(r); err != nil {
			return nil, err
		}
		img, err = jpeg.Decode(r)
		if err != nil {
			return nil, err
		}
	} else if err != nil {
		return nil, err
	}
	var out image.Image
	switch img := img.(type) {
	case *image.YCbCr:
		out = turnYCbCr(shrinkYCbCr(img, turned), info.orientation)
	case *image.Gray:
		out = turnGray(shrinkGray(img, turned), info.orientation)
	default: // CMYK
		return encodeRGBA(turnRGBA(shrink(rowsOf(img), turned), info.orientation), false)
	}
	return encodeJPEG(out)
}

func encodeJPEG(img image.Image) (*Result, error) {
	var b bytes.Buffer
	if err := jpeg.Encode(&b, img, &jpeg.Options{Quality: quality}); err != nil {
		return nil, err
	}
	return &Result{"image/jpeg", b.Bytes(), img.Bounds().Dx(), img.Bounds().Dy()}, nil
}

func encodeRGBA(img *image.RGBA, lossless bool) (*Result, error) {
	if !lossless {
		return encodeJPEG(img)
	}
	var b bytes.Buffer
	if err := png.Encode(&b, img); err != nil {
		return nil, err
	}
	return &Result{"image/png", b.Bytes(), img.Bounds().Dx(), img.Bounds().Dy()}, nil
}

// reader stops when its context ends.
type reader struct {
	ctx context.Context
	io.ReadSeeker
}

// Read reads on unless it is too late.
func (r *reader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.ReadSeeker.Read(p)
}
