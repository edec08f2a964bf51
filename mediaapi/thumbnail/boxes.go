package thumbnail

import "slices"

// A box is a set of colours of five bits a channel.
type box []int

// spread finds the channel, as the position of its bits, in which the colours differ most, and by how much.
func (b box) spread() (shift, width int) {
	for _, s := range []int{0, 5, 10} {
		low, high := 31, 0
		for _, c := range b {
			v := c >> s & 31
			low, high = min(low, v), max(high, v)
		}
		if high-low > width {
			shift, width = s, high-low
		}
	}
	return shift, width
}

// cutBoxes divides colours into at most 255 boxes: again and again, the box whose colours are seen most and differ most
// is cut in two.
func cutBoxes(colours []int, seen func(colour int) int) []box {
	if len(colours) == 0 {
		return nil
	}
	type entry struct {
		box
		shift, width, weight int
	}
	weigh := func(b box) entry {
		e := entry{box: b}
		e.shift, e.width = b.spread()
		for _, c := range b {
			e.weight += seen(c)
		}
		return e
	}
	list := []entry{weigh(colours)}
	for len(list) < 255 {
		best := -1
		for i, e := range list {
			if e.width > 0 && (best < 0 || e.weight*e.width > list[best].weight*list[best].width) {
				best = i
			}
		}
		if best < 0 {
			break
		}
		e := list[best]
		slices.SortFunc(e.box, func(a, b int) int { return a>>e.shift&31 - b>>e.shift&31 })
		at, sum := 1, seen(e.box[0])
		for at < len(e.box)-1 && 2*sum < e.weight {
			sum += seen(e.box[at])
			at++
		}
		list[best] = weigh(e.box[:at:at])
		list = append(list, weigh(e.box[at:]))
	}
	boxes := make([]box, len(list))
	for i, e := range list {
		boxes[i] = e.box
	}
	return boxes
}
