package authrules

import "iter"

// checkPowerLevels is the rule on m.room.power_levels. level is that of the sender under the current
// levels.
func (j *judge) checkPowerLevels(current *Levels, level int64) (rule, error) {
	next := powerOf(j.ev)
	if next.fault != noRule {
		return j.reject(next.fault, next.faultReason)
	}
	if create := createOf(j.create); create.privileged {
		for _, user := range create.creators {
			if _, ok := next.users.get(user); ok {
				return j.reject(powerCreators, "creators of the room cannot have a power level")
			}
		}
	}
	if !current.stated {
		return powerFirst, nil
	}
	old := current.content
	for i, name := range levelNames {
		c := change{name, old.named[i], next.named[i], old.present[i], next.present[i]}
		if c.old == c.new && c.had == c.has {
			continue
		}
		if c.had && c.old > level {
			return j.tooLow(powerOldLevel, c.key)
		}
		if c.has && c.new > level {
			return j.tooLow(powerNewLevel, c.key)
		}
	}
	if r, key := changedEntries(changes(old.events, next.events), level); r != noRule {
		return j.tooLow(r, "events: "+key)
	}
	if j.v.NotificationLevels {
		if r, key := changedEntries(changes(old.notifications, next.notifications), level); r != noRule {
			return j.tooLow(r, "notifications: "+key)
		}
	}
	if r, key := j.changedUsers(changes(old.users, next.users), level); r != noRule {
		return j.tooLow(r, "users: "+key)
	}
	return powerAllow, nil
}

func (j *judge) tooLow(r rule, what string) (rule, error) {
	return j.reject(r, "the sender's power level is too low to change "+what+" in this way")
}

// changedEntries judges the changes of events or of notifications.
func changedEntries(all iter.Seq[change], level int64) (r rule, key string) {
	for c := range all {
		if c.had && c.old > level {
			return powerOldEntry, c.key
		}
	}
	for c := range all {
		if c.has && c.new > level {
			return powerNewEntry, c.key
		}
	}
	return noRule, ""
}

// changedUsers judges the changes of users. A user of the sender's own level may only be changed by
// themselves.
func (j *judge) changedUsers(all iter.Seq[change], level int64) (r rule, key string) {
	for c := range all {
		if c.had && c.old >= level && c.key != j.ev.Sender {
			return powerOldUser, c.key
		}
	}
	for c := range all {
		if c.has && c.new > level {
			return powerNewUser, c.key
		}
	}
	return noRule, ""
}

// change is a level that was added (had is false), removed (has is false) or changed.
type change struct {
	key      string
	old, new int64
	had, has bool
}

// changes yields what differs between two sets of entries, by key. A number that is only written
// differently does not differ.
func changes(old, next entries) iter.Seq[change] {
	return func(yield func(change) bool) {
		for o, n := old, next; len(o) > 0 || len(n) > 0; {
			var c change
			switch {
			case len(n) == 0 || len(o) > 0 && o[0].key < n[0].key:
				c = change{key: o[0].key, old: o[0].level, had: true}
				o = o[1:]
			case len(o) == 0 || n[0].key < o[0].key:
				c = change{key: n[0].key, new: n[0].level, has: true}
				n = n[1:]
			default:
				c = change{o[0].key, o[0].level, n[0].level, true, true}
				o, n = o[1:], n[1:]
			}
			if c.had && c.has && c.old == c.new {
				continue
			}
			if !yield(c) {
				return
			}
		}
	}
}
