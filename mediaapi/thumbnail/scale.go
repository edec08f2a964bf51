package thumbnail

import (
	"image"
	"image/color"
	"math"
)

// A fitting is how a picture becomes a thumbnail: the part of the picture that is shown, as fractions of it, and the
// size of the thumbnail.
type fitting struct {
	x, y, w, h    float64
	width, height int
	whole         bool // the picture itself will do
}

// fit decides on the size. Thumbnails are never smaller than asked for and never larger than the picture: where these
// meet, the picture is smaller than the thumbnail that was asked for, and stays as it is.
// spec: client-server-api v1.19 "Thumbnails"
func fit(width, height int, s Spec) fitting {
	f := fitting{w: 1, h: 1, width: width, height: height}
	ratio := max(float64(s.Width)/float64(width), float64(s.Height)/float64(height))
	if !s.Crop {
		if f.whole = ratio >= 1; !f.whole {
			f.width, f.height = scaled(width, ratio), scaled(height, ratio)
		}
		return f
	}
	if width <= s.Width && height <= s.Height {
		f.whole = true
		return f
	}
	ratio = min(ratio, 1)
	full := struct{ w, h int }{scaled(width, ratio), scaled(height, ratio)}
	f.width, f.height = min(full.w, s.Width), min(full.h, s.Height)
	f.w, f.h = float64(f.width)/float64(full.w), float64(f.height)/float64(full.h)
	f.x, f.y = (1-f.w)/2, (1-f.h)/2
	return f
}

func scaled(n int, ratio float64) int { return max(1, int(math.Round(float64(n)*ratio))) }

// taps are the weights of some neighbouring samples, which add up to 1<<weightBits.
type taps struct {
	first   int
	weights []int32
}

const weightBits = 14

// weigh spreads n samples, of which those from start on for length are shown, over size. Each new sample is the mean of
// the old ones around it, those in the middle counting most.
func weigh(n int, start, length float64, size int) []taps {
	step := length / float64(size)
	radius := max(step, 1)
	list := make([]taps, size)
	for i := range list {
		centre := start + (float64(i)+0.5)*step - 0.5
		first, last := max(int(math.Ceil(centre-radius)), 0), min(int(math.Floor(centre+radius)), n-1)
		if first > last {
			first = min(max(int(math.Round(centre)), 0), n-1)
			last = first
		}
		var sum float64
		weights := make([]float64, last-first+1)
		for j := range weights {
			weights[j] = max(1-math.Abs(float64(first+j)-centre)/radius, 1e-6)
			sum += weights[j]
		}
		t := taps{first, make([]int32, len(weights))}
		left := int32(1 << weightBits)
		for j, w := range weights {
			t.weights[j] = int32(math.Round(w / sum * (1 << weightBits)))
			left -= t.weights[j]
		}
		t.weights[len(weights)/2] += left // rounding must not change the brightness
		list[i] = t
	}
	return list
}

// resample scales rows of samples of so many channels. row returns row y of the picture; the slice may be reused.
func resample(row func(y int) []byte, width, height, channels int, f fitting) []byte {
	across := weigh(width, f.x*float64(width), f.w*float64(width), f.width)
	down := weigh(height, f.y*float64(height), f.h*float64(height), f.height)
	stride := f.width * channels
	out := make([]byte, stride*f.height)
	sum := make([]int32, stride)
	// Rows that were scaled across are kept as long as a new row needs them.
	kept, from := [][]byte{}, down[0].first
	var spare [][]byte
	for y, t := range down {
		for len(kept) > 0 && from < t.first {
			spare, kept, from = append(spare, kept[0]), kept[1:], from+1
		}
		from = max(from, t.first)
		for from+len(kept) < t.first+len(t.weights) {
			var line []byte
			if n := len(spare); n > 0 {
				line, spare = spare[n-1], spare[:n-1]
			} else {
				line = make([]byte, stride)
			}
			if channels == 1 {
				squeeze1(line, row(from+len(kept)), across)
			} else {
				squeeze4(line, row(from+len(kept)), across)
			}
			kept = append(kept, line)
		}
		clear(sum)
		for i, w := range t.weights {
			for x, v := range kept[i][:stride] {
				sum[x] += w * int32(v)
			}
		}
		line := out[y*stride:][:stride]
		for x, v := range sum {
			line[x] = byte((v + 1<<(weightBits-1)) >> weightBits)
		}
	}
	return out
}

func squeeze1(dst, src []byte, across []taps) {
	for x, t := range across {
		sum := int32(1 << (weightBits - 1))
		part := src[t.first:][:len(t.weights)]
		for i, w := range t.weights {
			sum += w * int32(part[i])
		}
		dst[x] = byte(sum >> weightBits)
	}
}

func squeeze4(dst, src []byte, across []taps) {
	for x, t := range across {
		const half = 1 << (weightBits - 1)
		r, g, b, a := int32(half), int32(half), int32(half), int32(half)
		part := src[t.first*4:][:len(t.weights)*4]
		for i, w := range t.weights {
			p := part[i*4 : i*4+4 : i*4+4]
			r, g, b, a = r+w*int32(p[0]), g+w*int32(p[1]), b+w*int32(p[2]), a+w*int32(p[3])
		}
		p := dst[x*4 : x*4+4 : x*4+4]
		p[0], p[1], p[2], p[3] = byte(r>>weightBits), byte(g>>weightBits), byte(b>>weightBits), byte(a>>weightBits)
	}
}

// shrinkPlane scales one plane.
func shrinkPlane(pix []byte, stride, width, height int, f fitting) []byte {
	return resample(func(y int) []byte { return pix[y*stride:][:width] }, width, height, 1, f)
}

func shrinkGray(img *image.Gray, f fitting) *image.Gray {
	size := img.Bounds().Size()
	return &image.Gray{Pix: shrinkPlane(img.Pix, img.Stride, size.X, size.Y, f), Stride: f.width, Rect: image.Rect(0, 0, f.width, f.height)}
}

// shrinkYCbCr makes a picture whose colours have half the resolution both ways, as photographs have them anyway.
func shrinkYCbCr(img *image.YCbCr, f fitting) *image.YCbCr {
	size := img.Bounds().Size()
	cw, ch := img.COffset(size.X-1, 0)+1, img.COffset(0, size.Y-1)/max(img.CStride, 1)+1
	across := float64(size.X) / float64(cw*((size.X+cw-1)/cw)) // less than one if the last colour is half outside
	down := float64(size.Y) / float64(ch*((size.Y+ch-1)/ch))
	colour := f
	colour.x, colour.w, colour.y, colour.h = f.x*across, f.w*across, f.y*down, f.h*down
	colour.width, colour.height = (f.width+1)/2, (f.height+1)/2
	return &image.YCbCr{
		Y:       shrinkPlane(img.Y, img.YStride, size.X, size.Y, f),
		Cb:      shrinkPlane(img.Cb, img.CStride, cw, ch, colour),
		Cr:      shrinkPlane(img.Cr, img.CStride, cw, ch, colour),
		YStride: f.width, CStride: colour.width, SubsampleRatio: image.YCbCrSubsampleRatio420, Rect: image.Rect(0, 0, f.width, f.height),
	}
}

// rows are a picture's rows in RGBA with the alpha multiplied in.
type rows struct {
	width, height int
	row           func(y int) []byte
}

// shrink scales a picture in RGBA.
func shrink(r rows, f fitting) *image.RGBA {
	return &image.RGBA{Pix: resample(r.row, r.width, r.height, 4, f), Stride: 4 * f.width, Rect: image.Rect(0, 0, f.width, f.height)}
}

// rowsOf converts a picture row by row, so that there is no second copy of it.
func rowsOf(img image.Image) rows {
	b := img.Bounds()
	buf := make([]byte, 4*b.Dx())
	r := rows{width: b.Dx(), height: b.Dy()}
	switch img := img.(type) {
	case *image.RGBA:
		r.row = func(y int) []byte { return img.Pix[y*img.Stride:][:len(buf)] }
	case *image.NRGBA:
		r.row = func(y int) []byte { return premultiply(buf, img.Pix[y*img.Stride:]) }
	case *image.Paletted:
		var table [256][4]byte
		for i, c := range img.Palette {
			table[i] = rgba(c)
		}
		r.row = func(y int) []byte {
			for x, p := range img.Pix[y*img.Stride:][:b.Dx()] {
				copy(buf[4*x:], table[p][:])
			}
			return buf
		}
	default:
		r.row = func(y int) []byte {
			for x := range b.Dx() {
				p := rgba(img.At(b.Min.X+x, b.Min.Y+y))
				copy(buf[4*x:], p[:])
			}
			return buf
		}
	}
	return r
}

func rgba(c color.Color) [4]byte {
	r, g, b, a := c.RGBA()
	return [4]byte{byte(r >> 8), byte(g >> 8), byte(b >> 8), byte(a >> 8)}
}

func premultiply(dst, src []byte) []byte {
	for i := 0; i < len(dst); i += 4 {
		s, d := src[i:i+4:i+4], dst[i:i+4:i+4]
		switch a := uint32(s[3]); a {
		case 255:
			copy(d, s)
		default:
			for j := range 3 {
				d[j] = byte((uint32(s[j])*a + 127) / 255)
			}
			d[3] = byte(a)
		}
	}
	return dst
}
