package thumbnail

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/draw"
	"image/gif"
	"io"

	"golang.org/x/image/webp"
)

// frames are the pictures of an animation, one after the other, each as it is shown.
type frames struct {
	n    int
	loop int // as in gif.GIF
	// read returns the next frame and how long it is shown, in hundredths of a second; io.EOF after the last. The
	// picture is valid until the next call.
	read func() (img *image.RGBA, delay int, err error)
}

func (f *frames) count() int { return f.n }

func (f *frames) next() (*image.RGBA, error) {
	img, _, err := f.read()
	return img, err
}

// openFrames prepares to decode an animation. One that is beyond the limits has one frame, its first.
func openFrames(r io.ReadSeeker, info *Info, limits Limits) (*frames, error) {
	if err := rewind(r); err != nil {
		return nil, err
	}
	open := gifFrames
	if info.Type == "image/webp" {
		open = webpFrames
	}
	f, err := open(r, info, limits)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	return f, nil
}

// animate makes a GIF. It is the one animated format that every client shows.
func animate(ctx context.Context, f *frames, fit fitting) (*Result, error) {
	out := gif.GIF{LoopCount: f.loop, Config: image.Config{Width: fit.width, Height: fit.height}}
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		img, delay, err := f.read()
		if err == io.EOF && len(out.Image) > 0 { //nolint:errorlint // wrapped, it says that the file is cut
			break
		}
		if err != nil {
			return nil, errors.Join(ctx.Err(), fmt.Errorf("%w: %w", ErrUnsupported, err))
		}
		out.Image = append(out.Image, quantize(shrink(rowsOf(img), fit)))
		out.Delay = append(out.Delay, delay)
		out.Disposal = append(out.Disposal, gif.DisposalBackground) // every frame is a whole picture
	}
	var b bytes.Buffer
	if err := gif.EncodeAll(&b, &out); err != nil {
		return nil, err
	}
	return &Result{"image/gif", b.Bytes(), fit.width, fit.height}, nil
}

// gifFrames reads a GIF.
func gifFrames(r io.ReadSeeker, info *Info, limits Limits) (*frames, error) {
	n, area, err := countGIF(r, limits.Frames)
	if err != nil && n == 0 {
		return nil, err
	}
	if err := rewind(r); err != nil {
		return nil, err
	}
	var all *gif.GIF
	f := &frames{n: n}
	if err != nil || n == 1 || n > limits.Frames || area > 2*limits.Pixels || int64(n)*info.pixels() > 16*limits.Pixels {
		f.n = 1
		first, err := gif.Decode(r)
		if err != nil {
			return nil, err
		}
		one, ok := first.(*image.Paletted)
		if !ok {
			return nil, ErrUnsupported
		}
		all = &gif.GIF{Image: []*image.Paletted{one}, Delay: []int{0}, Disposal: []byte{0}}
	} else if all, err = gif.DecodeAll(r); err != nil {
		return nil, err
	}
	f.loop = all.LoopCount
	canvas := image.NewRGBA(image.Rect(0, 0, info.Width, info.Height))
	before, i := image.NewRGBA(image.Rectangle{}), 0
	f.read = func() (*image.RGBA, int, error) {
		if i == len(all.Image) {
			return nil, 0, io.EOF
		}
		if i > 0 {
			last := all.Image[i-1]
			switch all.Disposal[i-1] {
			case gif.DisposalBackground:
				draw.Draw(canvas, last.Rect, image.Transparent, image.Point{}, draw.Src)
			case gif.DisposalPrevious:
				copy(canvas.Pix, before.Pix)
			}
		}
		img := all.Image[i]
		if all.Disposal[i] == gif.DisposalPrevious {
			before = &image.RGBA{Pix: bytes.Clone(canvas.Pix), Stride: canvas.Stride, Rect: canvas.Rect}
		}
		draw.Draw(canvas, img.Rect, img, img.Rect.Min, draw.Over)
		i++
		return canvas, all.Delay[i-1], nil
	}
	return f, nil
}

var errBrokenGIF = errors.New("thumbnail: broken GIF")

// countGIF counts the frames of a GIF and their pixels without decoding them; it stops beyond limit.
func countGIF(r io.ReadSeeker, limit int) (n int, area int64, err error) {
	var b [13]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return 0, 0, err
	}
	table := func(flags byte) error {
		if flags&0x80 == 0 {
			return nil
		}
		_, err := r.Seek(3<<(1+flags&7), io.SeekCurrent)
		return err
	}
	blocks := func() error {
		for {
			if _, err := io.ReadFull(r, b[:1]); err != nil || b[0] == 0 {
				return err
			}
			if _, err := r.Seek(int64(b[0]), io.SeekCurrent); err != nil {
				return err
			}
		}
	}
	if err := table(b[10]); err != nil {
		return 0, 0, err
	}
	for n <= limit {
		if _, err := io.ReadFull(r, b[:1]); err != nil {
			return n, area, err
		}
		switch b[0] {
		case 0x3b:
			return n, area, nil
		case 0x21:
			if _, err = io.ReadFull(r, b[:1]); err == nil {
				err = blocks()
			}
		case 0x2c:
			if _, err = io.ReadFull(r, b[:9]); err != nil {
				return n, area, err
			}
			n++
			area += int64(binary.LittleEndian.Uint16(b[4:])) * int64(binary.LittleEndian.Uint16(b[6:]))
			if err = table(b[8]); err == nil {
				if _, err = io.ReadFull(r, b[:1]); err == nil {
					err = blocks()
				}
			}
		default:
			err = errBrokenGIF
		}
		if err != nil {
			return n, area, err
		}
	}
	return n, area, nil
}

// webpSize reads how large a WebP is and whether it is a still.
func webpSize(r io.ReadSeeker) (width, height int, still bool, err error) {
	var head [30]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, 0, false, err
	}
	const animation = 2
	if string(head[12:16]) == "VP8X" && head[20]&animation != 0 {
		return 1 + uint24(head[24:]), 1 + uint24(head[27:]), false, nil
	}
	if err := rewind(r); err != nil {
		return 0, 0, false, err
	}
	c, err := webp.DecodeConfig(r)
	return c.Width, c.Height, true, err
}

func uint24(b []byte) int { return int(b[0]) | int(b[1])<<8 | int(b[2])<<16 }

// anmf is a frame of an animated WebP.
type anmf struct {
	rect           image.Rectangle
	delay          int
	clear, replace bool
	data           []byte // the chunks of a still
}

var errBrokenWebP = errors.New("thumbnail: broken WebP")

// maxFrame bounds the bytes of one frame.
const maxFrame = 32 << 20

// readANMF finds the next frame; without data it skips its content.
func readANMF(r io.ReadSeeker, bounds image.Rectangle, withData bool) (*anmf, error) {
	for {
		var head [24]byte
		if _, err := io.ReadFull(r, head[:8]); err != nil {
			return nil, io.EOF
		}
		size := int64(binary.LittleEndian.Uint32(head[4:]))
		padded := size + size&1
		if string(head[:4]) != "ANMF" {
			if _, err := r.Seek(padded, io.SeekCurrent); err != nil {
				return nil, err
			}
			continue
		}
		if size < 16 || size > maxFrame {
			return nil, errBrokenWebP
		}
		if _, err := io.ReadFull(r, head[8:]); err != nil {
			return nil, err
		}
		x, y, w, h := 2*uint24(head[8:]), 2*uint24(head[11:]), 1+uint24(head[14:]), 1+uint24(head[17:])
		f := &anmf{rect: image.Rect(x, y, x+w, y+h), delay: uint24(head[20:]) / 10, clear: head[23]&1 != 0, replace: head[23]&2 != 0}
		if !f.rect.In(bounds) {
			return nil, errBrokenWebP
		}
		if !withData {
			_, err := r.Seek(padded-16, io.SeekCurrent)
			return f, err
		}
		var data bytes.Buffer
		if _, err := io.CopyN(&data, r, padded-16); err != nil {
			return nil, errBrokenWebP
		}
		f.data = data.Bytes()
		return f, nil
	}
}

// still wraps the chunks of a frame into a file of their own, which is decoded like any other.
func (f *anmf) still() (image.Image, error) {
	var b bytes.Buffer
	b.WriteString("RIFF\x00\x00\x00\x00WEBP")
	if bytes.HasPrefix(f.data, []byte("ALPH")) {
		w, h := f.rect.Dx()-1, f.rect.Dy()-1
		b.WriteString("VP8X\x0a\x00\x00\x00")
		b.Write([]byte{0x10, 0, 0, 0, byte(w), byte(w >> 8), byte(w >> 16), byte(h), byte(h >> 8), byte(h >> 16)})
	}
	b.Write(f.data)
	file := b.Bytes()
	binary.LittleEndian.PutUint32(file[4:], uint32(len(file)-8)) // #nosec G115: at most maxFrame
	c, err := webp.DecodeConfig(bytes.NewReader(file))
	if err != nil {
		return nil, err
	}
	if c.Width != f.rect.Dx() || c.Height != f.rect.Dy() { // before memory is given to it
		return nil, errBrokenWebP
	}
	return webp.Decode(bytes.NewReader(file))
}

// webpFrames reads an animated WebP.
func webpFrames(r io.ReadSeeker, info *Info, limits Limits) (*frames, error) {
	bounds := image.Rect(0, 0, info.Width, info.Height)
	if _, err := r.Seek(12, io.SeekStart); err != nil {
		return nil, err
	}
	f := &frames{}
	for f.n <= limits.Frames {
		if _, err := readANMF(r, bounds, false); err != nil {
			break
		}
		f.n++
	}
	if f.n == 0 {
		return nil, errBrokenWebP
	}
	if f.n > limits.Frames || int64(f.n)*info.pixels() > 16*limits.Pixels {
		f.n = 1
	}
	if _, err := r.Seek(12, io.SeekStart); err != nil {
		return nil, err
	}
	canvas := image.NewRGBA(bounds)
	var last *anmf
	f.read = func() (*image.RGBA, int, error) {
		frame, err := readANMF(r, bounds, true)
		if err != nil {
			return nil, 0, err
		}
		img, err := frame.still()
		if err != nil {
			return nil, 0, err
		}
		if last != nil && last.clear {
			draw.Draw(canvas, last.rect, image.Transparent, image.Point{}, draw.Src)
		}
		op := draw.Over
		if frame.replace {
			op = draw.Src
		}
		draw.Draw(canvas, frame.rect, img, img.Bounds().Min, op)
		last = frame
		return canvas, frame.delay, nil
	}
	return f, nil
}

// opaque is from what alpha on a pixel of a GIF is there.
const opaque = 128

// quantize picks 255 colours for a picture, by cutting the boxes of similar colours in two where they hold most, and
// keeps one for what is transparent.
func quantize(img *image.RGBA) *image.Paletted {
	var bins [1 << 15]struct {
		n       int32
		r, g, b int64
	}
	bin := func(p []byte) int { return int(p[0]>>3)<<10 | int(p[1]>>3)<<5 | int(p[2]>>3) }
	for i := 0; i < len(img.Pix); i += 4 {
		p := img.Pix[i : i+4 : i+4]
		if p[3] < opaque {
			continue
		}
		b := &bins[bin(p)]
		b.n, b.r, b.g, b.b = b.n+1, b.r+int64(p[0]), b.g+int64(p[1]), b.b+int64(p[2])
	}
	var used []int
	for i := range bins {
		if bins[i].n > 0 {
			used = append(used, i)
		}
	}
	boxes := cutBoxes(used, func(i int) int { return int(bins[i].n) })
	out := image.NewPaletted(img.Rect, color.Palette{color.RGBA{}})
	var index [1 << 15]byte
	for _, box := range boxes {
		var n, r, g, b int64
		for _, i := range box {
			n, r, g, b = n+int64(bins[i].n), r+bins[i].r, g+bins[i].g, b+bins[i].b
			index[i] = byte(len(out.Palette))
		}
		out.Palette = append(out.Palette, color.RGBA{byte(r / n), byte(g / n), byte(b / n), 255})
	}
	for i := range out.Pix {
		if p := img.Pix[4*i : 4*i+4 : 4*i+4]; p[3] >= opaque {
			out.Pix[i] = index[bin(p)]
		}
	}
	return out
}
