//go:build race

package mediaapi

// raceDetector is whether the tests run under the race detector.
const raceDetector = true
