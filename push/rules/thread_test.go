package rules

import (
	"fmt"
	"strings"
	"testing"
)

// TestThreadRules goes through what MSC4306 says of notifications in threads.
func TestThreadRules(t *testing.T) {
	in := func(root, more string) *Event {
		return message("m.room.message", fmt.Sprintf(`{"msgtype":"m.text","body":"hi","m.relates_to":{"rel_type":"m.thread","event_id":%q}%s}`, root, more))
	}
	mention := `,"m.mentions":{"user_ids":["` + alice + `"]}`
	muted := func(o *Overlay) error {
		return o.Put(RoomSpecific, Rule{ID: roomA, Actions: list()}, "", "")
	}
	subscribed := func(o *Overlay) error {
		o.SetSubscribed("$a", true)
		return nil
	}
	left := func(o *Overlay) error {
		o.SetSubscribed("$a", false)
		return nil
	}
	off := func(o *Overlay) error {
		return o.SetEnabled(PostContent, ".io.element.msc4306.rule.unsubscribed_thread", false)
	}
	for _, c := range []struct {
		name    string
		changes []func(*Overlay) error
		event   *Event
		want    string
	}{
		{"nobody has subscribed", nil, in("$a", ""), "notify"},
		{"subscribed", []func(*Overlay) error{subscribed}, in("$a", ""), "notify default"},
		{"subscribed in a muted room", []func(*Overlay) error{subscribed, muted}, in("$a", ""), "notify default"},
		{"another thread", []func(*Overlay) error{subscribed}, in("$b", ""), "silent"},
		{"a mention in another thread", []func(*Overlay) error{subscribed}, in("$b", mention), "notify highlight default"},
		{"a mention in this thread", []func(*Overlay) error{subscribed}, in("$a", mention), "notify highlight default"},
		{"the main timeline", []func(*Overlay) error{subscribed}, text("hi"), "notify"},
		{"unsubscribed", []func(*Overlay) error{subscribed, left}, in("$a", ""), "silent"},
		{"the rule is off", []func(*Overlay) error{subscribed, off}, in("$b", ""), "notify"},
		{"another relation", []func(*Overlay) error{subscribed},
			message("m.room.message", `{"body":"hi","m.relates_to":{"rel_type":"m.reference","event_id":"$b"}}`), "notify"},
	} {
		o := &Overlay{}
		for _, change := range c.changes {
			if err := change(o); err != nil {
				t.Fatal(err)
			}
		}
		stored, err := o.Encode()
		if err != nil {
			t.Fatal(err)
		}
		again, err := DecodeOverlay(stored)
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range []*Overlay{o, again} {
			if got := shape(Compile(o, alice).Evaluate(Prepare(c.event), group, "")); got != c.want {
				t.Errorf("%s: %s, want %s", c.name, got, c.want)
			}
		}
	}
}

// The rules about threads show up with the first subscription; of the threads the latest are known.
func TestThreadRulesShown(t *testing.T) {
	o := &Overlay{}
	shown := func() bool {
		raw, err := o.Ruleset(alice).AppendJSON(nil)
		if err != nil {
			t.Fatal(err)
		}
		return strings.Contains(string(raw), `"postcontent":[{"rule_id":".io.element.msc4306.rule.unsubscribed_thread","default":true,"enabled":true,"conditions":[`)
	}
	if shown() {
		t.Error("nobody has subscribed")
	}
	for i := range maxThreads + 1 {
		o.SetSubscribed(fmt.Sprint("$", i), true)
	}
	if !shown() || len(*o.threads) != maxThreads || (*o.threads)[0] != "$1" {
		t.Errorf("%d threads, the first is %s", len(*o.threads), (*o.threads)[0])
	}
	if _, err := o.Encode(); err != nil {
		t.Error(err)
	}
}
