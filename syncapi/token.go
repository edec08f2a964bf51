package syncapi

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/roomserver"
)

// Token is a place in the log as /sync hands it out.
type Token struct {
	// Generation is that of the log; a restored backup has another.
	Generation int64
	// Pos is the log position up to which the client knows everything.
	Pos int64
	// ToDevice is the position up to which the device has received to-device messages.
	ToDevice int64
	// Volatile is how far the client knows what is not in the log: typing and presence.
	Volatile Volatile
	// Sticky is the position up to which the client knows sticky events, where there were too many for one answer; 0: Pos.
	Sticky int64
	// Outdated are the rooms, by number, whose timelines in the answer ended with state that is not current; at most
	// maxOutdated. The next answer has what is.
	Outdated []int64
}

// maxOutdated bounds the rooms that a token names, which has to fit into a URL.
const maxOutdated = 50

// sticky is the position up to which the client knows sticky events.
func (t Token) sticky() int64 {
	if t.Sticky > 0 {
		return t.Sticky
	}
	return t.Pos
}

// Volatile stamps what only memory knows: the counters of one boot.
type Volatile struct {
	Boot     int64
	Typing   int64
	Presence int64
}

// String is the token's wire form: version, then the fields.
func (t Token) String() string {
	s := fmt.Sprintf("s1_%s_%d_%d_%s_%d_%d", strconv.FormatInt(t.Generation, 36), t.Pos, t.ToDevice,
		strconv.FormatInt(t.Volatile.Boot, 36), t.Volatile.Typing, t.Volatile.Presence)
	if t.Sticky > 0 || len(t.Outdated) > 0 {
		s += "_" + strconv.FormatInt(t.Sticky, 10)
	}
	for i, nid := range t.Outdated {
		s += string("_."[min(i, 1)]) + strconv.FormatInt(nid, 36)
	}
	return s
}

// parseToken reads a token of this server; anything else is 400 M_INVALID_PARAM.
func parseToken(s string) (Token, error) {
	bad := mxerr.InvalidParam("That is not a sync token of this server")
	parts := strings.Split(s, "_")
	if len(parts) < 7 || len(parts) > 9 || parts[0] != "s1" {
		return Token{}, bad
	}
	var outdated []int64
	if len(parts) == 9 {
		if strings.Count(parts[8], ".") >= maxOutdated {
			return Token{}, bad
		}
		for nid := range strings.SplitSeq(parts[8], ".") {
			v, err := strconv.ParseInt(nid, 36, 64)
			if err != nil || v < 0 {
				return Token{}, bad
			}
			outdated = append(outdated, v)
		}
		parts = parts[:8]
	}
	var n [7]int64
	for i, p := range parts[1:] {
		base := 10
		if i == 0 || i == 3 {
			base = 36
		}
		v, err := strconv.ParseInt(p, base, 64)
		if err != nil || v < 0 {
			return Token{}, bad
		}
		n[i] = v
	}
	return Token{n[0], n[1], n[2], Volatile{n[3], n[4], n[5]}, n[6], outdated}, nil
}

// historyToken is the wire form of a place in a room's history order.
func historyToken(t roomserver.HistoryToken) string { return t.String() }

// historyTokenAt is the wire form of a place in an answer that is true at a log position.
func historyTokenAt(t roomserver.HistoryToken, pos int64) string {
	return historyToken(t) + "_" + strconv.FormatInt(pos, 10)
}

// answeredAt is the log position of the answer that a token of historyTokenAt was part of.
func answeredAt(s string) (pos int64, ok bool) {
	if len(s) == 0 || s[0] != 't' || strings.Count(s, "_") != 2 {
		return 0, false
	}
	pos, err := strconv.ParseInt(s[strings.LastIndexByte(s, '_')+1:], 10, 64)
	return pos, err == nil && pos >= 0
}

// parsePlace reads a token where the specification takes one for a place in a room: a history token, or a
// sync token, which is the place after all that it covers.
func parsePlace(s string) (roomserver.HistoryToken, error) {
	bad := mxerr.InvalidParam("That is not a token of this server")
	switch {
	case strings.HasPrefix(s, "s1_"):
		t, err := parseToken(s)
		return roomserver.AfterPosition(t.Pos), err
	case strings.HasPrefix(s, slidingTokenPrefix):
		t, ok := parseSlidingToken(s)
		if !ok {
			return roomserver.HistoryToken{}, bad
		}
		return roomserver.AfterPosition(t.pos), nil
	case strings.HasPrefix(s, "p"):
		place, _, _ := strings.Cut(s[1:], "_")
		anchor, err := strconv.ParseInt(place, 10, 64)
		if err != nil || anchor < 0 {
			return roomserver.HistoryToken{}, bad
		}
		return roomserver.HistoryToken{Anchor: anchor, Sub: math.MinInt64}, nil
	case strings.HasPrefix(s, "t"):
		a, b, ok := strings.Cut(s[1:], "_")
		b, _, _ = strings.Cut(b, "_")
		anchor, err1 := strconv.ParseInt(a, 10, 64)
		sub, err2 := strconv.ParseInt(b, 10, 64)
		if !ok || err1 != nil || err2 != nil || anchor < 0 {
			return roomserver.HistoryToken{}, bad
		}
		return roomserver.HistoryToken{Anchor: anchor, Sub: sub}, nil
	}
	return roomserver.HistoryToken{}, bad
}
