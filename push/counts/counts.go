package counts

// Counts are numbers of unread events.
type Counts struct {
	// Notifications are events that notify, Highlights those of them with the highlight tweak.
	Notifications, Highlights int64
}

func (c *Counts) add(d Counts) {
	c.Notifications += d.Notifications
	c.Highlights += d.Highlights
}

func (c *Counts) remove(d Counts) {
	c.Notifications -= d.Notifications
	c.Highlights -= d.Highlights
}

// Unread are the counts of one room for one user.
type Unread struct {
	// Main is the main timeline.
	Main Counts
	// Threads are the threads with something unread.
	Threads []Thread
}

// Thread is a thread with something unread.
type Thread struct {
	// Root is the event ID of the thread's root.
	Root string
	Counts
}

// Total sums up the room, for clients that know nothing of threads.
func (u *Unread) Total() Counts {
	sum := u.Main
	for i := range u.Threads {
		sum.add(u.Threads[i].Counts)
	}
	return sum
}
