package authrules

import (
	"slices"
	"strconv"
	"strings"
	"testing"
)

// TestRuleNumbers checks what can be checked of the table without reading the specification again:
// in each version, every number is there once, and the items of each list are 1, 2, 3 and so on.
func TestRuleNumbers(t *testing.T) {
	// How many rules the list of each version has, counted in the specification: every item
	// that allows or rejects.
	counts := map[int]int{
		1: 56, 2: 56, 3: 53, 4: 53, 5: 53, 6: 50, 7: 54, 8: 58, 9: 58, 10: 60, 11: 59, 12: 61,
	}
	for version := 1; version <= newestList; version++ {
		// children of a number, by their last part
		children := map[string][]int{}
		total := 0
		for r := noRule + 1; r < rules; r++ {
			number := r.number(version)
			if number == "" {
				continue
			}
			total++
			parent := ""
			for _, part := range strings.Split(number, ".") {
				n, err := strconv.Atoi(part)
				if err != nil {
					t.Fatalf("version %d: %s is number %q", version, r, number)
				}
				if !slices.Contains(children[parent], n) {
					children[parent] = append(children[parent], n)
				} else if parent+part == strings.ReplaceAll(number, ".", "") {
					t.Errorf("version %d: number %s is there twice, the second is %s", version, number, r)
				}
				parent += part + "."
			}
		}
		for parent, list := range children {
			slices.Sort(list)
			for i, n := range list {
				if n != i+1 {
					t.Errorf("version %d: list %q has the items %v", version, parent, list)
					break
				}
			}
		}
		if total != counts[version] {
			t.Errorf("version %d has %d rules, the specification %d", version, total, counts[version])
		}
	}
}

func TestRuleNames(t *testing.T) {
	seen := map[string]rule{}
	for r := noRule + 1; r < rules; r++ {
		if r.String() == "" || ruleTable[r].outcomes == 0 || len(ruleTable[r].numbers) == 0 {
			t.Errorf("rule %d is not described", r)
		}
		if other, ok := seen[r.String()]; ok {
			t.Errorf("rules %d and %d are both called %s", other, r, r)
		}
		seen[r.String()] = r
	}
}
