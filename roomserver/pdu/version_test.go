package pdu

import (
	"strconv"
	"testing"
)

// spec: rooms "Feature matrix" and the version pages
func TestVersions(t *testing.T) {
	first := func(flag func(*Version) bool) int {
		for i, v := range Versions() {
			if flag(v) {
				for _, later := range Versions()[i:] {
					if !flag(later) {
						t.Errorf("a flag that version %s has is lost in %s", v.ID, later.ID)
					}
				}
				return i + 1
			}
		}
		return 0
	}
	for _, c := range []struct {
		name  string
		flag  func(*Version) bool
		since int
	}{
		{"state resolution 2", func(v *Version) bool { return v.StateRes >= 2 }, 2},
		{"hashes as event IDs", func(v *Version) bool { return v.EventFormat >= 2 }, 3},
		{"redactions always authorised", func(v *Version) bool { return !v.RedactionAuth }, 3},
		{"URL-safe IDs", func(v *Version) bool { return v.URLSafeIDs }, 4},
		{"key validity", func(v *Version) bool { return v.KeyValidityEnforced }, 5},
		{"strict JSON", func(v *Version) bool { return v.StrictJSON }, 6},
		{"no alias rules", func(v *Version) bool { return !v.SpecialAliasAuth }, 6},
		{"notification levels", func(v *Version) bool { return v.NotificationLevels }, 6},
		{"knocking", func(v *Version) bool { return v.KnockAllowed }, 7},
		{"restricted joins", func(v *Version) bool { return v.RestrictedJoins }, 8},
		{"restricted joins survive redaction", func(v *Version) bool { return v.RestrictedJoinsFix }, 9},
		{"knock_restricted", func(v *Version) bool { return v.KnockRestricted }, 10},
		{"integer power levels", func(v *Version) bool { return v.IntegerPowerLevels }, 10},
		{"implicit creator", func(v *Version) bool { return v.ImplicitCreator }, 11},
		{"redacts in content", func(v *Version) bool { return v.RedactsInContent }, 11},
		{"redaction of version 11", func(v *Version) bool { return v.UpdatedRedaction }, 11},
		{"privileged creators", func(v *Version) bool { return v.CreatorsPrivileged }, 12},
		{"room IDs as hashes", func(v *Version) bool { return v.RoomIDIsCreateHash && v.EventFormat == 3 }, 12},
		{"state resolution 2.1", func(v *Version) bool { return v.StateRes == 3 }, 12},
	} {
		if got := first(c.flag); got != c.since {
			t.Errorf("%s since version %d, want %d", c.name, got, c.since)
		}
	}
}

func TestLookup(t *testing.T) {
	for n := 1; n <= 12; n++ {
		if v, ok := Lookup(strconv.Itoa(n)); !ok || v.ID != strconv.Itoa(n) || v != Versions()[n-1] {
			t.Errorf("Lookup(%d) = %v, %v", n, v, ok)
		}
	}
	for _, id := range []string{"", "0", "13", "01", "1 ", "org.matrix.msc2176"} {
		if _, ok := Lookup(id); ok {
			t.Errorf("Lookup(%q) finds a version", id)
		}
	}
	if _, ok := Lookup(DefaultVersion); !ok {
		t.Error("the default version is unknown")
	}
}

// spec: MSC3757
func TestStateKeyOwner(t *testing.T) {
	for key, want := range map[string]string{
		"@a:one":            "@a:one",
		"@a:one_":           "@a:one",
		"@a:one_x_y:z":      "@a:one",
		"@a_b:one.org:80_x": "@a_b:one.org:80",
		"@a_b:[::1]_x":      "@a_b:[::1]",
		"@a:onex":           "@a:onex",
		"@_x@a:one_y":       "@_x@a:one",
		"@":                 "",
		"@a":                "",
		"@a_b":              "",
		"@a:":               "",
		"@a:_":              "",
		"@a:one@x_y":        "",
		"@a:one\x00_y":      "",
		"a:one_x":           "",
	} {
		if got := StateKeyOwner(key); got != want {
			t.Errorf("StateKeyOwner(%q) = %q, want %q", key, got, want)
		}
	}
}

func TestProposedVersions(t *testing.T) {
	for n, id := range map[int]string{10: "org.matrix.msc3757.10", 11: "org.matrix.msc3757.11"} {
		v, ok := Lookup(id)
		if !ok || v.Stable() || !v.OwnedState || v.Rules != n {
			t.Fatalf("%s: %+v, %v", id, v, ok)
		}
		base := *Versions()[n-1]
		if !Versions()[n-1].Stable() || base.OwnedState {
			t.Errorf("%d: %+v", n, base)
		}
		base.ID, base.OwnedState = v.ID, true
		if base != *v {
			t.Errorf("%s differs from version %d in more: %+v", id, n, v)
		}
	}
}
