package thumbnail

import (
	"bytes"
	"encoding/binary"
	"image"
	"io"
)

// maxHeader bounds what is read in search of the orientation, in bytes.
const maxHeader = 256 << 10

// orientationOf reads the EXIF orientation of a JPEG, 1 to 8; 1, upright, if there is none.
func orientationOf(r io.ReadSeeker) int {
	if rewind(r) != nil {
		return 1
	}
	head, err := io.ReadAll(io.LimitReader(r, maxHeader))
	if err != nil || len(head) < 4 {
		return 1
	}
	for rest := head[2:]; len(rest) >= 4 && rest[0] == 0xff; {
		marker, size := rest[1], int(binary.BigEndian.Uint16(rest[2:]))
		if marker == 0xda || size < 2 || len(rest) < 2+size { // the picture begins
			break
		}
		if exif, ok := bytes.CutPrefix(rest[4:2+size], []byte("Exif\x00\x00")); ok && marker == 0xe1 {
			return exifOrientation(exif)
		}
		rest = rest[2+size:]
	}
	return 1
}

// exifOrientation reads a TIFF header and the first directory behind it.
func exifOrientation(b []byte) int {
	var order binary.ByteOrder
	switch {
	case bytes.HasPrefix(b, []byte("II*\x00")):
		order = binary.LittleEndian
	case bytes.HasPrefix(b, []byte("MM\x00*")):
		order = binary.BigEndian
	default:
		return 1
	}
	if len(b) < 8 {
		return 1
	}
	at := uint64(order.Uint32(b[4:]))
	if at+2 > uint64(len(b)) {
		return 1
	}
	entries := b[at+2:]
	for range order.Uint16(b[at:]) {
		if len(entries) < 12 {
			break
		}
		const orientation, short = 0x112, 3
		if order.Uint16(entries) == orientation && order.Uint16(entries[2:]) == short {
			if v := int(order.Uint16(entries[8:])); v >= 1 && v <= 8 {
				return v
			}
			break
		}
		entries = entries[12:]
	}
	return 1
}

// unturned is the fitting in the picture as it is stored, before it is turned.
func (f fitting) unturned(orientation int) fitting {
	if orientation >= 5 {
		f.width, f.height = f.height, f.width
		f.x, f.y, f.w, f.h = f.y, f.x, f.h, f.w
	}
	return f
}

// turn moves the samples of a plane to where they belong in the upright picture.
func turn(pix []byte, width, height, channels, orientation int) []byte {
	if orientation <= 1 {
		return pix
	}
	outWidth := width
	if orientation >= 5 {
		outWidth = height
	}
	out := make([]byte, len(pix))
	for y := range height {
		for x := range width {
			var ox, oy int
			switch orientation {
			case 2:
				ox, oy = width-1-x, y
			case 3:
				ox, oy = width-1-x, height-1-y
			case 4:
				ox, oy = x, height-1-y
			case 5:
				ox, oy = y, x
			case 6:
				ox, oy = height-1-y, x
			case 7:
				ox, oy = height-1-y, width-1-x
			case 8:
				ox, oy = y, width-1-x
			}
			copy(out[(oy*outWidth+ox)*channels:][:channels], pix[(y*width+x)*channels:])
		}
	}
	return out
}

// turnedSize is a size after turning.
func turnedSize(r image.Rectangle, orientation int) image.Rectangle {
	if orientation >= 5 {
		return image.Rect(0, 0, r.Dy(), r.Dx())
	}
	return r
}

// The pictures that are turned are fresh from the scaler: their planes have no gaps.

func turnYCbCr(img *image.YCbCr, orientation int) *image.YCbCr {
	size := img.Rect.Size()
	cw, ch := (size.X+1)/2, (size.Y+1)/2
	out := &image.YCbCr{SubsampleRatio: img.SubsampleRatio, Rect: turnedSize(img.Rect, orientation)}
	out.Y = turn(img.Y, size.X, size.Y, 1, orientation)
	out.Cb, out.Cr = turn(img.Cb, cw, ch, 1, orientation), turn(img.Cr, cw, ch, 1, orientation)
	out.YStride, out.CStride = out.Rect.Dx(), (out.Rect.Dx()+1)/2
	return out
}

func turnGray(img *image.Gray, orientation int) *image.Gray {
	out := &image.Gray{Pix: turn(img.Pix, img.Rect.Dx(), img.Rect.Dy(), 1, orientation), Rect: turnedSize(img.Rect, orientation)}
	out.Stride = out.Rect.Dx()
	return out
}

func turnRGBA(img *image.RGBA, orientation int) *image.RGBA {
	out := &image.RGBA{Pix: turn(img.Pix, img.Rect.Dx(), img.Rect.Dy(), 4, orientation), Rect: turnedSize(img.Rect, orientation)}
	out.Stride = 4 * out.Rect.Dx()
	return out
}
