package authrules

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
func changedEntries(all []change, level int64) (r rule, key string) {
	for _, c := range all {
		if c.had && c.old > level {
			return powerOldEntry, c.key
		}
	}
	for _, c := range all {
		if c.has && c.new > level {
			return powerNewEntry, c.key
		}
	}
	return noRule, ""
}

// changedUsers judges the changes of users. A user of the sender's own level may only be changed by
// themselves.
func (j *judge) changedUsers(all []change, level int64) (r rule, key string) {
	for _, c := range all {
		if c.had && c.old >= level && c.key != j.ev.Sender {
			return powerOldUser, c.key
		}
	}
	for _, c := range all {
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

// changes lists what differs between two sets of entries, by key. A number that is only written
// differently does not differ.
func changes(old, next entries) []change {
	var list []change
	for len(old) > 0 || len(next) > 0 {
		switch {
		case len(next) == 0 || len(old) > 0 && old[0].key < next[0].key:
			list = append(list, change{key: old[0].key, old: old[0].level, had: true})
			old = old[1:]
		case len(old) == 0 || next[0].key < old[0].key:
			list = append(list, change{key: next[0].key, new: next[0].level, has: true})
			next = next[1:]
		default:
			if old[0].level != next[0].level {
				list = append(list, change{old[0].key, old[0].level, next[0].level, true, true})
			}
			old, next = old[1:], next[1:]
		}
	}
	return list
}
