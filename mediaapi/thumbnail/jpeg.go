package thumbnail

import (
	"encoding/binary"
	"errors"
	"image"
	"io"
)

// errNotPlain is returned for JPEGs that decodeScaled leaves to the standard library: progressive ones, those in
// several scans or unusual colour spaces, and those that are hardly larger than the thumbnail.
var errNotPlain = errors.New("thumbnail: not a plain JPEG")

var errBrokenJPEG = errors.New("thumbnail: broken JPEG")

// decodeScaled decodes a baseline JPEG at a half, a quarter or an eighth of its size, whichever is just large enough.
//
// A block of 8×8 pixels is stored as 64 frequencies. Its picture at a quarter of the size is the inverse transform of
// the four lowest ones alone: the others are skipped, bits unread, which leaves a fifth of the work.
// ITU-T T.81, F.2 (decoding of baseline JPEG).
//
// The picture may be up to a sample wider and higher than a half, a quarter or an eighth; the fitting that is returned
// leaves that out.
func decodeScaled(r io.Reader, f fitting) (image.Image, fitting, error) {
	d := &jpegDecoder{r: r}
	if err := d.headers(); err != nil {
		return nil, f, err
	}
	side := 0
	for _, s := range []int{1, 2, 4} { // samples left of eight
		w, h := (d.width*s+7)/8, (d.height*s+7)/8
		if float64(w)*f.w >= float64(f.width) && float64(h)*f.h >= float64(f.height) {
			side = s
			break
		}
	}
	if side == 0 {
		return nil, f, errNotPlain
	}
	d.allocate(side)
	if err := d.scan(); err != nil {
		return nil, f, err
	}
	img := d.image()
	across := float64(d.width*side) / float64(8*img.Bounds().Dx())
	down := float64(d.height*side) / float64(8*img.Bounds().Dy())
	f.x, f.w, f.y, f.h = f.x*across, f.w*across, f.y*down, f.h*down
	return img, f, nil
}

// component is one colour of the picture.
type component struct {
	id, h, v int // h and v: blocks of it in a unit of the picture
	quant    *[64]int32
	dc, ac   *huffman
	last     int32 // the last block's lowest frequency

	pix    []byte
	stride int
}

type jpegDecoder struct {
	r    io.Reader
	buf  [32 << 10]byte
	pos  int
	end  int
	bits uint64 // read and not used yet, the highest first
	n    int    // how many
	over bool   // a marker has come: only zeros from here on
	zero int    // how many bytes were made up after the end

	width, height int
	components    []component
	quants        [4][64]int32
	huffmans      [2][4]huffman
	restart       int
	side          int
}

// fill reads more. The bytes that are left move to the front.
func (d *jpegDecoder) fill() error {
	d.end = copy(d.buf[:], d.buf[d.pos:d.end])
	d.pos = 0
	for range 100 {
		n, err := d.r.Read(d.buf[d.end:])
		if d.end += n; n > 0 {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return io.ErrNoProgress
}

func (d *jpegDecoder) byte() (byte, error) {
	if d.pos == d.end {
		if err := d.fill(); err != nil {
			return 0, err
		}
	}
	d.pos++
	return d.buf[d.pos-1], nil
}

// segment reads the content of a marker segment; it is valid until the next read.
func (d *jpegDecoder) segment() ([]byte, error) {
	for d.end-d.pos < 2 {
		if err := d.fill(); err != nil {
			return nil, err
		}
	}
	size := int(binary.BigEndian.Uint16(d.buf[d.pos:])) - 2
	if d.pos += 2; size < 0 {
		return nil, errBrokenJPEG
	}
	if size > len(d.buf) { // none of those that matter is this long
		return nil, d.skip(size)
	}
	for d.end-d.pos < size {
		if err := d.fill(); err != nil {
			return nil, err
		}
	}
	d.pos += size
	return d.buf[d.pos-size : d.pos], nil
}

func (d *jpegDecoder) skip(n int) error {
	for n > 0 {
		if d.pos == d.end {
			if err := d.fill(); err != nil {
				return err
			}
		}
		step := min(n, d.end-d.pos)
		d.pos, n = d.pos+step, n-step
	}
	return nil
}

// marker finds the next marker.
func (d *jpegDecoder) marker() (byte, error) {
	for {
		b, err := d.byte()
		if err != nil {
			return 0, err
		}
		for b == 0xff {
			if b, err = d.byte(); err != nil {
				return 0, err
			}
			if b != 0xff && b != 0 {
				return b, nil
			}
		}
	}
}

// headers reads everything up to the first scan, and checks that it is the only one.
func (d *jpegDecoder) headers() error {
	adobe := -1
	for {
		m, err := d.marker()
		if err != nil {
			return err
		}
		if m == 0xd8 || m >= 0xd0 && m <= 0xd7 {
			continue
		}
		s, err := d.segment()
		if err != nil {
			return err
		}
		switch m {
		case 0xc0, 0xc1:
			err = d.frame(s)
		case 0xc4:
			err = d.tables(s)
		case 0xdb:
			err = d.quantization(s)
		case 0xdd:
			if len(s) != 2 {
				return errBrokenJPEG
			}
			d.restart = int(binary.BigEndian.Uint16(s))
		case 0xee:
			if len(s) >= 12 && string(s[:5]) == "Adobe" {
				adobe = int(s[11])
			}
		case 0xda:
			if adobe == 0 && len(d.components) == 3 {
				return errNotPlain // RGB
			}
			return d.scanHeader(s)
		case 0xc2, 0xc3, 0xc5, 0xc6, 0xc7, 0xc9, 0xca, 0xcb, 0xcd, 0xce, 0xcf, 0xd9:
			return errNotPlain
		}
		if err != nil {
			return err
		}
	}
}

func (d *jpegDecoder) frame(s []byte) error {
	if len(s) < 6 || d.components != nil {
		return errBrokenJPEG
	}
	d.height, d.width = int(binary.BigEndian.Uint16(s[1:])), int(binary.BigEndian.Uint16(s[3:]))
	n := int(s[5])
	if s[0] != 8 || n != 1 && n != 3 {
		return errNotPlain
	}
	if len(s) != 6+3*n || d.width == 0 || d.height == 0 {
		return errBrokenJPEG
	}
	for i := range n {
		p := s[6+3*i:]
		c := component{id: int(p[0]), h: int(p[1] >> 4), v: int(p[1] & 15), quant: &d.quants[p[2]&3]}
		if n == 1 {
			c.h, c.v = 1, 1 // of one colour alone, blocks come one by one
		}
		if i == 0 && (c.h != 1 && c.h != 2 || c.v != 1 && c.v != 2) || i > 0 && (c.h != 1 || c.v != 1) || p[2] > 3 {
			return errNotPlain
		}
		d.components = append(d.components, c)
	}
	return nil
}

func (d *jpegDecoder) quantization(s []byte) error {
	for len(s) > 0 {
		wide, id := s[0]>>4, s[0]&15
		size := 64 << min(wide, 1)
		if wide > 1 || id > 3 || len(s) < 1+size {
			return errBrokenJPEG
		}
		for i := range 64 {
			if wide == 0 {
				d.quants[id][i] = int32(s[1+i])
			} else {
				d.quants[id][i] = int32(binary.BigEndian.Uint16(s[1+2*i:]))
			}
		}
		s = s[1+size:]
	}
	return nil
}

func (d *jpegDecoder) scanHeader(s []byte) error {
	n := len(d.components)
	if n == 0 || len(s) < 1 {
		return errBrokenJPEG
	}
	if int(s[0]) != n {
		return errNotPlain
	}
	if len(s) != 4+2*n {
		return errBrokenJPEG
	}
	for i := range d.components {
		c := &d.components[i]
		dc, ac := s[2+2*i]>>4, s[2+2*i]&15
		if int(s[1+2*i]) != c.id || dc > 3 || ac > 3 {
			return errNotPlain
		}
		c.dc, c.ac = &d.huffmans[0][dc], &d.huffmans[1][ac]
		if !c.dc.set || !c.ac.set {
			return errBrokenJPEG
		}
	}
	return nil
}

// lookup is how many bits of a code are looked up at once.
const lookup = 10

// huffman is a table of codes.
type huffman struct {
	set  bool
	fast [1 << lookup]uint16 // the symbol, and the code's length from bit 8 on; 0: the code is longer
	max  [17]int32           // by length: the largest code, -1: none
	base [17]int32           // by length: what to add to a code for the index of its symbol
	syms [256]byte
}

func (d *jpegDecoder) tables(s []byte) error {
	for len(s) > 0 {
		if len(s) < 17 || s[0]>>4 > 1 || s[0]&15 > 3 {
			return errBrokenJPEG
		}
		h := &d.huffmans[s[0]>>4][s[0]&15]
		*h = huffman{set: true}
		total := 0
		for _, n := range s[1:17] {
			total += int(n)
		}
		if total == 0 || total > 256 || len(s) < 17+total {
			return errBrokenJPEG
		}
		copy(h.syms[:], s[17:17+total])
		code, index := int32(0), int32(0)
		for length := 1; length <= 16; length++ {
			n := int32(s[length])
			if code+n > 1<<length {
				return errBrokenJPEG
			}
			h.base[length], h.max[length] = index-code, code+n-1
			if n == 0 {
				h.max[length] = -1
			}
			for ; n > 0; n-- {
				if length <= lookup {
					entry := uint16(length)<<8 | uint16(h.syms[index])
					for i := range int32(1) << (lookup - length) {
						h.fast[code<<(lookup-length)|i] = entry
					}
				}
				code, index = code+1, index+1
			}
			code <<= 1
		}
		s = s[17+total:]
	}
	return nil
}

// maxMadeUp is how many bytes of a cut picture are taken for zeros before it counts as broken.
const maxMadeUp = 1 << 20

// need makes sure that 32 bits are there.
func (d *jpegDecoder) need() error {
	for d.n <= 32 {
		if d.end-d.pos >= 4 && !d.over {
			v := binary.BigEndian.Uint32(d.buf[d.pos:])
			if inverted := ^v; (inverted-0x01010101)&v&0x80808080 == 0 { // no byte of it is 0xff
				d.bits |= uint64(v) << (32 - d.n)
				d.n, d.pos = d.n+32, d.pos+4
				continue
			}
		}
		b, err := d.entropy()
		if err != nil {
			return err
		}
		d.bits |= uint64(b) << (56 - d.n)
		d.n += 8
	}
	return nil
}

// entropy reads a byte of the scan: 0xff stands for itself before a zero, otherwise a marker begins.
func (d *jpegDecoder) entropy() (byte, error) {
	for d.end-d.pos < 2 && !d.over {
		if err := d.fill(); errors.Is(err, io.EOF) {
			d.over = true
		} else if err != nil {
			return 0, err
		}
	}
	if d.over {
		if d.zero++; d.zero > maxMadeUp {
			return 0, errBrokenJPEG
		}
		return 0, nil
	}
	b := d.buf[d.pos]
	if b == 0xff {
		if d.buf[d.pos+1] != 0 {
			d.over = true
			return d.entropy()
		}
		d.pos++
	}
	d.pos++
	return b, nil
}

// symbol reads a code; 32 bits must be there, of which at most 16 are used.
func (d *jpegDecoder) symbol(h *huffman) (byte, error) {
	if e := h.fast[d.bits>>(64-lookup)]; e != 0 {
		d.drop(int(e >> 8))
		return byte(e), nil
	}
	for length := lookup + 1; length <= 16; length++ {
		if code := int32(d.bits >> (64 - length)); code <= h.max[length] {
			d.drop(length)
			return h.syms[(h.base[length]+code)&255], nil
		}
	}
	return 0, errBrokenJPEG
}

func (d *jpegDecoder) drop(n int) {
	d.bits <<= n
	d.n -= n
}

// value reads a number of so many bits, at most 16, of which the first is the sign.
func (d *jpegDecoder) value(bits int) int32 {
	if bits == 0 {
		return 0
	}
	v := int32(d.bits >> (64 - bits))
	d.drop(bits)
	if v < 1<<(bits-1) {
		v += -1<<bits + 1
	}
	return v
}

// natural is where the frequencies, which are stored in zigzag, belong in the 4×4 lowest ones; 255: nowhere.
var natural = func() (table [80]byte) {
	zigzag := [64]int{
		0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6, 7, 14, 21, 28,
		35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
	}
	for i := range table {
		table[i] = 255
		if i < 64 && zigzag[i]%8 < 4 && zigzag[i]/8 < 4 {
			table[i] = byte(zigzag[i]/8*4 + zigzag[i]%8)
		}
	}
	return table
}()

// wanted is the last frequency, in zigzag, that matters for so many samples of eight.
var wanted = [5]int{1: 0, 2: 4, 4: 24}

// block reads the frequencies of a block that matter.
func (d *jpegDecoder) block(c *component, f *[16]int32) error {
	if err := d.need(); err != nil {
		return err
	}
	s, err := d.symbol(c.dc)
	if err != nil {
		return err
	}
	if s > 11 {
		return errBrokenJPEG
	}
	c.last += d.value(int(s))
	*f = [16]int32{c.last * c.quant[0]}
	last := wanted[d.side]
	for k := 1; k < 64; k++ {
		if d.n < 32 {
			if err := d.need(); err != nil {
				return err
			}
		}
		s, err := d.symbol(c.ac)
		if err != nil {
			return err
		}
		size := int(s & 15)
		if size == 0 {
			if s != 0xf0 {
				break
			}
			k += 15
			continue
		}
		k += int(s >> 4)
		if k > last {
			d.drop(size)
			continue
		}
		v := d.value(size)
		if at := natural[k]; at != 255 {
			f[at] = v * c.quant[k]
		}
	}
	return nil
}

// allocate makes room for the picture, whole units of it.
func (d *jpegDecoder) allocate(side int) {
	d.side = side
	across, down := d.units()
	for i := range d.components {
		c := &d.components[i]
		c.stride = across * c.h * side
		c.pix = make([]byte, c.stride*down*c.v*side)
	}
}

// units is how many units the picture has.
func (d *jpegDecoder) units() (across, down int) {
	c := &d.components[0]
	return (d.width + 8*c.h - 1) / (8 * c.h), (d.height + 8*c.v - 1) / (8 * c.v)
}

// scan reads the picture.
func (d *jpegDecoder) scan() error {
	across, down := d.units()
	var f [16]int32
	left := d.restart
	for uy := range down {
		for ux := range across {
			if d.restart > 0 {
				if left == 0 {
					if err := d.resume(); err != nil {
						return err
					}
					left = d.restart
				}
				left--
			}
			for i := range d.components {
				c := &d.components[i]
				for b := range c.h * c.v {
					if err := d.block(c, &f); err != nil {
						return err
					}
					x, y := (ux*c.h+b%c.h)*d.side, (uy*c.v+b/c.h)*d.side
					d.transform(&f, c.pix[y*c.stride+x:], c.stride)
				}
			}
		}
	}
	return nil
}

// resume goes on after a restart marker.
func (d *jpegDecoder) resume() error {
	d.bits, d.n, d.over = 0, 0, false
	for i := range d.components {
		d.components[i].last = 0
	}
	m, err := d.marker()
	if errors.Is(err, io.EOF) {
		d.over = true
		return nil
	}
	if err == nil && (m < 0xd0 || m > 0xd7) {
		d.over = true // the picture is cut
	}
	return err
}

// transform writes the samples of a block. The inverse transform of the lowest N×N frequencies, scaled by N/8, is the
// block at N/8 of its size.
func (d *jpegDecoder) transform(f *[16]int32, dst []byte, stride int) {
	switch d.side {
	case 1:
		dst[0] = sample((f[0] + 4) >> 3)
	case 2:
		a, b, c, e := f[0]+4, f[1], f[4], f[5]
		dst[0], dst[1] = sample((a+b+c+e)>>3), sample((a-b+c-e)>>3)
		dst[stride], dst[stride+1] = sample((a+b-c-e)>>3), sample((a-b-c+e)>>3)
	case 4:
		transform4(f, dst, stride)
	}
}

// The factors of a transform of four, times 1<<13: cos(π/8)/2, cos(3π/8)/2 and 1/√8.
const (
	cos1 = 3784
	cos3 = 1567
	root = 2896
)

func transform4(f *[16]int32, dst []byte, stride int) {
	var t [16]int32
	for x := range 4 { // down
		even, odd := (f[x]+f[8+x])*root, (f[x]-f[8+x])*root
		p, q := f[4+x]*cos1+f[12+x]*cos3, f[4+x]*cos3-f[12+x]*cos1
		t[x], t[4+x], t[8+x], t[12+x] = (even+p)>>8, (odd+q)>>8, (odd-q)>>8, (even-p)>>8
	}
	const half = 1 << 17
	for y := range 4 { // across
		r, line := t[4*y:4*y+4:4*y+4], dst[y*stride:][:4]
		even, odd := (r[0]+r[2])*root+half, (r[0]-r[2])*root+half
		p, q := r[1]*cos1+r[3]*cos3, r[1]*cos3-r[3]*cos1
		line[0], line[1], line[2], line[3] = sample((even+p)>>18), sample((odd+q)>>18), sample((odd-q)>>18), sample((even-p)>>18)
	}
}

// sample moves the middle from 0 to 128 and cuts what is beyond a byte.
func sample(v int32) byte { return byte(min(max(v+128, 0), 255)) }

// image is the picture without what fills up its last units.
func (d *jpegDecoder) image() image.Image {
	rect := image.Rect(0, 0, (d.width*d.side+7)/8, (d.height*d.side+7)/8)
	y := &d.components[0]
	if len(d.components) == 1 {
		return &image.Gray{Pix: y.pix, Stride: y.stride, Rect: rect}
	}
	ratio := image.YCbCrSubsampleRatio444
	switch {
	case y.h == 2 && y.v == 2:
		ratio = image.YCbCrSubsampleRatio420
	case y.h == 2:
		ratio = image.YCbCrSubsampleRatio422
	case y.v == 2:
		ratio = image.YCbCrSubsampleRatio440
	}
	return &image.YCbCr{Y: y.pix, Cb: d.components[1].pix, Cr: d.components[2].pix, YStride: y.stride, CStride: d.components[1].stride,
		SubsampleRatio: ratio, Rect: rect}
}
