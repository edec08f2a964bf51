package thumbnail

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/gif"
	"image/jpeg"
	"image/png"
	"math"
	"math/rand/v2"
	"testing"
	"time"
)

var limits = Limits{Pixels: 40 << 20, Frames: 100}

// corner paints a picture that is red at the top left, green at the top right, blue at the bottom left, grey at the
// bottom right, with soft edges.
func corner(x, y, w, h int) color.RGBA {
	c := color.RGBA{0, 0, 0, 255}
	switch left, top := x < w/2, y < h/2; {
	case left && top:
		c.R = 220
	case top:
		c.G = 220
	case left:
		c.B = 220
	default:
		c.R, c.G, c.B = 128, 128, 128
	}
	return c
}

func painted(w, h int) *image.RGBA {
	img := image.NewRGBA(image.Rect(0, 0, w, h))
	for y := range h {
		for x := range w {
			img.SetRGBA(x, y, corner(x, y, w, h))
		}
	}
	return img
}

func asPNG(t testing.TB, img image.Image) []byte {
	var b bytes.Buffer
	if err := png.Encode(&b, img); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func asJPEG(t testing.TB, img image.Image) []byte {
	var b bytes.Buffer
	if err := jpeg.Encode(&b, img, &jpeg.Options{Quality: 90}); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// withOrientation puts an EXIF segment into a JPEG.
func withOrientation(file []byte, orientation int, order binary.AppendByteOrder) []byte {
	tiff := []byte("II*\x00")
	if order.String() == "BigEndian" {
		tiff = []byte("MM\x00*")
	}
	tiff = order.AppendUint32(tiff, 8)
	tiff = order.AppendUint16(tiff, 2)
	tiff = append(order.AppendUint32(order.AppendUint16(order.AppendUint16(tiff, 0x10f), 2), 1), 0, 0, 0, 0)
	tiff = order.AppendUint32(order.AppendUint16(order.AppendUint16(tiff, 0x112), 3), 1)
	tiff = append(order.AppendUint16(tiff, uint16(orientation)), 0, 0)
	segment := append([]byte("Exif\x00\x00"), tiff...)
	out := append(bytes.Clone(file[:2]), 0xff, 0xe1)
	out = binary.BigEndian.AppendUint16(out, uint16(len(segment)+2))
	return append(append(out, segment...), file[2:]...)
}

func mustMake(t testing.TB, file []byte, spec Spec) (*Result, image.Image) {
	t.Helper()
	r, err := Make(context.Background(), bytes.NewReader(file), spec, limits)
	if err != nil {
		t.Fatalf("%+v: %v", spec, err)
	}
	img, format, err := image.Decode(bytes.NewReader(r.Data))
	if err != nil || "image/"+format != r.Type || img.Bounds().Dx() != r.Width || img.Bounds().Dy() != r.Height {
		t.Fatalf("%+v: a result of %s, %dx%d: %v, %v", spec, r.Type, r.Width, r.Height, format, err)
	}
	return r, img
}

// near compares colours.
func near(a, b color.Color, by float64) bool {
	p, q := rgba(a), rgba(b)
	for i := range p {
		if math.Abs(float64(p[i])-float64(q[i])) > by {
			return false
		}
	}
	return true
}

// corners checks the colours in the middle of each quarter.
func corners(t *testing.T, what string, img image.Image, want [4]color.RGBA) {
	t.Helper()
	b := img.Bounds()
	for i, c := range want {
		x, y := b.Min.X+b.Dx()*(1+2*(i%2))/4, b.Min.Y+b.Dy()*(1+2*(i/2))/4
		if got := img.At(x, y); !near(got, c, 25) {
			t.Errorf("%s: corner %d is %v, want %v", what, i, rgba(got), c)
		}
	}
}

var (
	red, green = color.RGBA{220, 0, 0, 255}, color.RGBA{0, 220, 0, 255}
	blue, grey = color.RGBA{0, 0, 220, 255}, color.RGBA{128, 128, 128, 255}
)

func TestSizes(t *testing.T) {
	for _, test := range []struct {
		w, h  int
		spec  Spec
		wantW int // 0: the original
		wantH int
	}{
		{1000, 500, Spec{Width: 100, Height: 100}, 200, 100},
		{500, 1000, Spec{Width: 100, Height: 100}, 100, 200},
		{1000, 500, Spec{Width: 100, Height: 100, Crop: true}, 100, 100},
		{640, 480, Spec{Width: 320, Height: 240}, 320, 240},
		{639, 481, Spec{Width: 320, Height: 240}, 320, 241},
		{320, 240, Spec{Width: 320, Height: 240}, 0, 0},
		{100, 1000, Spec{Width: 320, Height: 240}, 0, 0},
		{31, 31, Spec{Width: 32, Height: 32, Crop: true}, 0, 0},
		{100, 20, Spec{Width: 32, Height: 32, Crop: true}, 32, 20},
		{33, 32, Spec{Width: 32, Height: 32, Crop: true}, 32, 32},
		{1000, 3, Spec{Width: 1, Height: 1}, 333, 1},
		{997, 1009, Spec{Width: 1, Height: 1, Crop: true}, 1, 1},
	} {
		for name, file := range map[string][]byte{"png": asPNG(t, painted(test.w, test.h)), "jpeg": asJPEG(t, painted(test.w, test.h))} {
			r, err := Make(context.Background(), bytes.NewReader(file), test.spec, limits)
			if test.wantW == 0 {
				if !errors.Is(err, ErrOriginal) {
					t.Errorf("%s %dx%d to %+v: %v", name, test.w, test.h, test.spec, err)
				}
				continue
			}
			if err != nil || r.Width != test.wantW || r.Height != test.wantH || r.Type != "image/"+name {
				t.Errorf("%s %dx%d to %+v: %+v, %v", name, test.w, test.h, test.spec, r, err)
			}
		}
	}
}

// TestPicture looks at what is on the thumbnails: of every format, every scale of the JPEG decoder, cropped and not.
func TestPicture(t *testing.T) {
	img := painted(800, 602)
	gray := image.NewGray(img.Rect)
	for i := range gray.Pix {
		gray.Pix[i] = byte(i % 800 / 4)
	}
	for _, size := range []int{500, 300, 150, 90, 20} {
		for _, crop := range []bool{false, true} {
			for name, file := range map[string][]byte{"png": asPNG(t, img), "jpeg": asJPEG(t, img)} {
				what := fmt.Sprint(name, size, crop)
				_, got := mustMake(t, file, Spec{Width: size, Height: size, Crop: crop})
				corners(t, what, got, [4]color.RGBA{red, green, blue, grey})
			}
			_, got := mustMake(t, asJPEG(t, gray), Spec{Width: size, Height: size})
			b := got.Bounds()
			for _, at := range []float64{.1, .5, .9} {
				want := color.Gray{byte(at * 200)}
				if c := got.At(int(at*float64(b.Dx())), b.Dy()/2); !near(c, want, 5) {
					t.Errorf("gray at %v: %v, want %v", at, c, want)
				}
			}
		}
	}
}

// TestScaledDecoder compares it with the standard library's on noise, where every frequency is in use, for all the
// ways in which colours are stored, with and without restart markers.
func TestScaledDecoder(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for _, ratio := range []image.YCbCrSubsampleRatio{image.YCbCrSubsampleRatio420} {
		for _, size := range [][2]int{{64, 64}, {333, 177}, {17, 161}, {1200, 9}} {
			img := image.NewYCbCr(image.Rect(0, 0, size[0], size[1]), ratio)
			for i := range img.Y {
				img.Y[i] = byte(100 + 60*math.Sin(float64(i%img.YStride)/9) + float64(rnd.IntN(12)))
			}
			for i := range img.Cb {
				img.Cb[i], img.Cr[i] = byte(90+i%img.CStride/6), byte(150-i%img.CStride/7)
			}
			file := asJPEG(t, img)
			whole, err := jpeg.Decode(bytes.NewReader(file))
			if err != nil {
				t.Fatal(err)
			}
			for _, den := range []int{2, 4, 8} {
				f := fitting{w: 1, h: 1, width: max(1, size[0]/den), height: max(1, size[1]/den)}
				want := shrinkYCbCr(whole.(*image.YCbCr), f)
				half, f, err := decodeScaled(bytes.NewReader(file), f)
				if err != nil {
					t.Fatal(err)
				}
				got := shrinkYCbCr(half.(*image.YCbCr), f)
				var sum, worst float64
				for i := range want.Y {
					d := math.Abs(float64(want.Y[i]) - float64(got.Y[i]))
					sum, worst = sum+d, max(worst, d)
				}
				if mean := sum / float64(len(want.Y)); mean > 4 || worst > 30 {
					t.Errorf("%v at 1/%d: %v off on average, %v at worst", size, den, mean, worst)
				}
				for i := range want.Cb {
					if d := math.Abs(float64(want.Cb[i]) - float64(got.Cb[i])); d > 12 {
						t.Errorf("%v at 1/%d: colour %d is off by %v", size, den, i, d)
						break
					}
				}
			}
		}
	}
}

func TestOrientation(t *testing.T) {
	file := asJPEG(t, painted(400, 200))
	for orientation, want := range map[int][4]color.RGBA{
		1: {red, green, blue, grey}, 2: {green, red, grey, blue}, 3: {grey, blue, green, red}, 4: {blue, grey, red, green},
		5: {red, blue, green, grey}, 6: {blue, red, grey, green}, 7: {grey, green, blue, red}, 8: {green, grey, red, blue},
		0: {red, green, blue, grey}, 9: {red, green, blue, grey},
	} {
		for _, order := range []binary.AppendByteOrder{binary.BigEndian, binary.LittleEndian} {
			turned := withOrientation(file, orientation, order)
			r, img := mustMake(t, turned, Spec{Width: 50, Height: 50})
			if upright := orientation >= 5 && orientation <= 8; upright != (r.Height == 100) || r.Width+r.Height != 150 {
				t.Errorf("orientation %d: %dx%d", orientation, r.Width, r.Height)
			}
			corners(t, fmt.Sprint("orientation ", orientation), img, want)
			_, img = mustMake(t, turned, Spec{Width: 60, Height: 60, Crop: true})
			if img.Bounds().Size() != image.Pt(60, 60) {
				t.Errorf("cropped to %v", img.Bounds())
			}
		}
	}
}

func TestAlpha(t *testing.T) {
	img := image.NewNRGBA(image.Rect(0, 0, 100, 100))
	for y := range 100 {
		for x := range 100 {
			img.SetNRGBA(x, y, color.NRGBA{200, 100, 50, byte(x / 50 * 128)})
		}
	}
	r, got := mustMake(t, asPNG(t, img), Spec{Width: 20, Height: 20})
	if r.Type != "image/png" || rgba(got.At(2, 10))[3] != 0 || !near(color.NRGBAModel.Convert(got.At(17, 10)), color.NRGBA{200, 100, 50, 128}, 3) {
		t.Errorf("%s, %v, %v", r.Type, rgba(got.At(2, 10)), rgba(got.At(17, 10)))
	}
}

// film makes a GIF whose frames change a part of the picture.
func film(t testing.TB, w, h, n int) []byte {
	out := gif.GIF{Config: image.Config{Width: w, Height: h}}
	palette := color.Palette{color.Transparent, red, green, blue, grey}
	for i := range n {
		rect := image.Rect(0, 0, w, h)
		if i > 0 {
			rect = image.Rect(w/2, 0, w, h/2)
		}
		img := image.NewPaletted(rect, palette)
		for j := range img.Pix {
			img.Pix[j] = byte(1 + i%4)
		}
		out.Image, out.Delay, out.Disposal = append(out.Image, img), append(out.Delay, 7), append(out.Disposal, gif.DisposalNone)
	}
	var b bytes.Buffer
	if err := gif.EncodeAll(&b, &out); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestAnimation(t *testing.T) {
	file := film(t, 200, 100, 5)
	r, img := mustMake(t, file, Spec{Width: 50, Height: 50})
	if r.Type != "image/png" || r.Width != 100 {
		t.Errorf("still: %s %dx%d", r.Type, r.Width, r.Height)
	}
	corners(t, "still", img, [4]color.RGBA{red, red, red, red})
	r, _ = mustMake(t, file, Spec{Width: 50, Height: 50, Animated: true, Crop: true})
	moving, err := gif.DecodeAll(bytes.NewReader(r.Data))
	if err != nil || len(moving.Image) != 5 || moving.Delay[2] != 7 || moving.Config.Width != 50 {
		t.Fatalf("animated: %v, %d frames", err, len(moving.Image))
	}
	corners(t, "third frame", moving.Image[2], [4]color.RGBA{red, blue, red, red})
	// Small enough: the original moves, a still is made where none may.
	if _, err := Make(context.Background(), bytes.NewReader(file), Spec{Width: 300, Height: 300, Animated: true}, limits); !errors.Is(err, ErrOriginal) {
		t.Errorf("a small animation: %v", err)
	}
	if r, _ := mustMake(t, file, Spec{Width: 300, Height: 300}); r.Type != "image/png" || r.Width != 200 {
		t.Errorf("a small still: %s %d", r.Type, r.Width)
	}
	if _, err := Make(context.Background(), bytes.NewReader(film(t, 20, 20, 1)), Spec{Width: 30, Height: 30}, limits); !errors.Is(err, ErrOriginal) {
		t.Errorf("a small GIF that does not move: %v", err)
	}
	few := Limits{Pixels: limits.Pixels, Frames: 4}
	r, err = Make(context.Background(), bytes.NewReader(file), Spec{Width: 50, Height: 50, Animated: true}, few)
	if err != nil || r.Type != "image/png" {
		t.Errorf("an animation beyond the limits: %v", err)
	}
}

// A lossless WebP of 1×1.
const tinyWebP = "UklGRhoAAABXRUJQVlA4TA0AAAAvAAAAEAcQERGIiP4HAA=="

func TestWebP(t *testing.T) {
	one, err := base64.StdEncoding.DecodeString(tinyWebP)
	if err != nil {
		t.Fatal(err)
	}
	info, err := Probe(bytes.NewReader(one))
	if err != nil || info.Type != "image/webp" || info.Width != 1 || info.Height != 1 {
		t.Fatalf("%+v, %v", info, err)
	}
	if _, err := Make(context.Background(), bytes.NewReader(one), Spec{Width: 1, Height: 1}, limits); !errors.Is(err, ErrOriginal) {
		t.Errorf("a small WebP: %v", err)
	}
	// An animation of three frames of one pixel on a canvas of 20×10.
	chunk := func(id string, data []byte) []byte {
		b := binary.LittleEndian.AppendUint32([]byte(id), uint32(len(data)))
		if b = append(b, data...); len(data)%2 > 0 {
			b = append(b, 0)
		}
		return b
	}
	file := []byte("RIFF\x00\x00\x00\x00WEBP")
	file = append(file, chunk("VP8X", []byte{2, 0, 0, 0, 19, 0, 0, 9, 0, 0})...)
	file = append(file, chunk("ANIM", make([]byte, 6))...)
	for i := range 3 {
		file = append(file, chunk("ANMF", append([]byte{byte(i), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 100, 0, 0, 2}, one[12:]...))...)
	}
	for _, animated := range []bool{true, false} {
		r, err := Make(context.Background(), bytes.NewReader(file), Spec{Width: 10, Height: 5, Animated: animated}, limits)
		if err != nil || r.Width != 10 || r.Height != 5 || animated != (r.Type == "image/gif") {
			t.Fatalf("animated %v: %+v, %v", animated, r, err)
		}
		if animated {
			if moving, err := gif.DecodeAll(bytes.NewReader(r.Data)); err != nil || len(moving.Image) != 3 || moving.Delay[0] != 10 {
				t.Errorf("%v, %d frames", err, len(moving.Image))
			}
		}
	}
	for n := range file { // whatever is missing, it ends
		_, _ = Make(context.Background(), bytes.NewReader(file[:n]), Spec{Width: 10, Height: 5, Animated: true}, limits)
	}
}

// TestBombs tries pictures that are small as files and large in memory.
func TestBombs(t *testing.T) {
	huge := asPNG(t, image.NewPaletted(image.Rect(0, 0, 100, 100), color.Palette{red}))
	binary.BigEndian.PutUint32(huge[16:], 60_000)
	binary.BigEndian.PutUint32(huge[20:], 60_000)
	wide := asJPEG(t, painted(16, 16))
	frame := bytes.Index(wide, []byte{0xff, 0xc0})
	binary.BigEndian.PutUint16(wide[frame+5:], 65_000)
	binary.BigEndian.PutUint16(wide[frame+7:], 65_000)
	canvas := film(t, 10, 10, 2)
	binary.LittleEndian.PutUint16(canvas[6:], 65_000)
	binary.LittleEndian.PutUint16(canvas[8:], 65_000)
	deep := asPNG(t, image.NewNRGBA64(image.Rect(0, 0, 5000, 5000)))
	for name, file := range map[string][]byte{"png": huge, "jpeg": wide, "gif": canvas, "deep": deep} {
		start := time.Now()
		_, err := Make(context.Background(), bytes.NewReader(file), Spec{Width: 10, Height: 10, Animated: true}, limits)
		if !errors.Is(err, ErrTooLarge) && !errors.Is(err, ErrUnsupported) || time.Since(start) > 20*time.Second {
			t.Errorf("%s: %v after %v", name, err, time.Since(start))
		}
	}
	for _, file := range []string{"", "x", "\xff\xd8", "\xff\xd8\xff\xff\xff", "GIF89a", "RIFF....WEBPVP8 ", "<svg/>", "%PDF"} {
		if _, err := Make(context.Background(), bytes.NewReader([]byte(file)), Spec{Width: 10, Height: 10}, limits); !errors.Is(err, ErrUnsupported) {
			t.Errorf("%q: %v", file, err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Make(ctx, bytes.NewReader(asJPEG(t, painted(800, 800))), Spec{Width: 10, Height: 10}, limits); !errors.Is(err, context.Canceled) {
		t.Errorf("after the end: %v", err)
	}
}

func FuzzMake(f *testing.F) {
	f.Add(asPNG(f, painted(20, 20)))
	f.Add(asJPEG(f, painted(40, 40)))
	f.Add(film(f, 20, 20, 3))
	one, _ := base64.StdEncoding.DecodeString(tinyWebP)
	f.Add(one)
	small := Limits{Pixels: 1 << 16, Frames: 10}
	f.Fuzz(func(t *testing.T, file []byte) {
		for _, spec := range []Spec{{Width: 8, Height: 8}, {Width: 5, Height: 9, Crop: true, Animated: true}} {
			r, err := Make(context.Background(), bytes.NewReader(file), spec, small)
			if err == nil && (len(r.Data) == 0 || r.Width < 1 || r.Height < 1) {
				t.Errorf("%+v", r)
			}
		}
	})
}

// TestDamaged flips bytes of every format.
func TestDamaged(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	for _, whole := range [][]byte{asJPEG(t, painted(60, 60)), asPNG(t, painted(30, 30)), film(t, 20, 20, 3)} {
		for range 300 {
			file := bytes.Clone(whole)
			for range 1 + rnd.IntN(4) {
				file[rnd.IntN(len(file))] = byte(rnd.Uint32())
			}
			_, _ = Make(context.Background(), bytes.NewReader(file[:rnd.IntN(len(file))+1]), Spec{Width: 10, Height: 10, Animated: true}, Limits{Pixels: 1 << 18, Frames: 9})
		}
	}
}

// photograph is a JPEG of twelve megapixels with as much detail as a camera leaves.
func photograph(b testing.TB) []byte {
	const w, h = 4000, 3000
	img := image.NewYCbCr(image.Rect(0, 0, w, h), image.YCbCrSubsampleRatio420)
	rnd := rand.New(rand.NewPCG(1, 2))
	for y := range h {
		for x := range w {
			img.Y[y*img.YStride+x] = byte(x*200/w+y*40/h) + byte(rnd.IntN(12))
		}
	}
	for i := range img.Cb {
		img.Cb[i], img.Cr[i] = byte(100+i%50), byte(120+i*20/len(img.Cb))
	}
	var out bytes.Buffer
	if err := jpeg.Encode(&out, img, &jpeg.Options{Quality: 85}); err != nil {
		b.Fatal(err)
	}
	return out.Bytes()
}

func BenchmarkPhotograph(b *testing.B) {
	file := photograph(b)
	b.Run("standard-library-decode", func(b *testing.B) {
		for b.Loop() {
			if _, err := jpeg.Decode(bytes.NewReader(file)); err != nil {
				b.Fatal(err)
			}
		}
	})
	for _, spec := range []Spec{{Width: 800, Height: 600}, {Width: 320, Height: 240}, {Width: 96, Height: 96, Crop: true}} {
		b.Run(fmt.Sprintf("%dx%d", spec.Width, spec.Height), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Make(context.Background(), bytes.NewReader(file), spec, limits); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
