// Package house tests the shape of the repository itself: which package may import which, that everything exported
// is documented, and that the tree speaks of nothing but the project.
package house
