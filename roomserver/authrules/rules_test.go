package authrules

import (
	"slices"
	"strconv"
	"strings"
	"testing"
)

// TestRuleNumbers checks what can be checked of the table without reading the specification again:
// in each version every number is there once, the items of each list are 1, 2, 3 and so on,
// and there are as many as the specification has.
func TestRuleNumbers(t *testing.T) {
	// How many rules allow or reject in each version, counted in the specification's text.
	counts := map[int]int{
		1: 59, 2: 59, 3: 56, 4: 56, 5: 56, 6: 53, 7: 57, 8: 61, 9: 61, 10: 63, 11: 62, 12: 64,
	}
	for version := 1; version <= newestList; version++ {
		numbers := map[string]rule{}
		items := map[string][]int{} // of the list under a number
		for r := noRule + 1; r < rules; r++ {
			number := r.number(version)
			if number == "" {
				continue
			}
			if other, ok := numbers[number]; ok {
				t.Errorf("version %d: %s and %s are both number %s", version, other, r, number)
			}
			numbers[number] = r
			parent := ""
			for _, part := range strings.Split(number, ".") {
				n, err := strconv.Atoi(part)
				if err != nil {
					t.Fatalf("version %d: %s has the number %q", version, r, number)
				}
				if !slices.Contains(items[parent], n) {
					items[parent] = append(items[parent], n)
				}
				parent += part + "."
			}
		}
		for parent, list := range items {
			slices.Sort(list)
			if list[0] != 1 || list[len(list)-1] != len(list) {
				t.Errorf("version %d: list %q has the items %v", version, parent, list)
			}
		}
		if len(numbers) != counts[version] {
			t.Errorf("version %d has %d rules, the specification %d", version, len(numbers), counts[version])
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
