package authrules

// Notifications returns the levels that the power levels state for kinds of notification; any other kind needs level
// 50. The map is the caller's; it is nil if nothing is stated.
func (l *Levels) Notifications() map[string]int64 {
	if len(l.content.notifications) == 0 {
		return nil
	}
	out := make(map[string]int64, len(l.content.notifications))
	for _, e := range l.content.notifications {
		out[e.key] = e.level
	}
	return out
}
