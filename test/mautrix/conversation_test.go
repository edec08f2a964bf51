// Package mautrix lets a client that others wrote, mautrix-go, talk with the server.
package mautrix

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"github.com/myelin-im/myelin/test/harness"
)

// device is one logged-in client, with all that its syncs brought.
type device struct {
	*mautrix.Client
	name string

	mu       sync.Mutex
	timeline []*event.Event
	invites  map[id.RoomID]bool
	receipts map[id.UserID]id.EventID
	typing   []id.UserID
	typed    bool // somebody was typing
	news     chan struct{}
	ended    chan error
	stop     context.CancelFunc
}

func login(t *testing.T, s *harness.Server, localpart, name string) *device {
	t.Helper()
	client, err := mautrix.NewClient(s.URL, "", "")
	if err != nil {
		t.Fatal(err)
	}
	d := &device{Client: client, name: name, invites: map[id.RoomID]bool{}, receipts: map[id.UserID]id.EventID{}, news: make(chan struct{}, 1), ended: make(chan error, 1)}
	_, err = client.Login(t.Context(), &mautrix.ReqLogin{
		Type: mautrix.AuthTypePassword, Identifier: mautrix.UserIdentifier{Type: mautrix.IdentifierTypeUser, User: localpart},
		Password: harness.Password, DeviceID: id.DeviceID(name), StoreCredentials: true,
	})
	if err != nil {
		t.Fatalf("log in as %s: %v", localpart, err)
	}
	client.Syncer.(*mautrix.DefaultSyncer).OnEvent(d.hear)
	ctx, stop := context.WithCancel(context.Background())
	d.stop = stop
	go func() { d.ended <- client.SyncWithContext(ctx) }()
	t.Cleanup(stop)
	return d
}

// hear is called with every event of a sync.
func (d *device) hear(_ context.Context, e *event.Event) {
	d.mu.Lock()
	defer d.mu.Unlock()
	source := e.Mautrix.EventSource
	switch {
	case source&event.SourceTimeline != 0:
		d.timeline = append(d.timeline, e)
	case source&event.SourceInvite != 0:
		d.invites[e.RoomID] = true
	case e.Type == event.EphemeralEventReceipt:
		for eventID, receipts := range *e.Content.AsReceipt() {
			for user := range receipts[event.ReceiptTypeRead] {
				d.receipts[user] = eventID
			}
		}
	case e.Type == event.EphemeralEventTyping:
		d.typing = e.Content.AsTyping().UserIDs
		d.typed = d.typed || len(d.typing) > 0
	}
	select {
	case d.news <- struct{}{}:
	default:
	}
}

// until waits until the device knows something.
func (d *device) until(t *testing.T, what string, known func() bool) {
	t.Helper()
	deadline := time.After(time.Minute)
	for {
		d.mu.Lock()
		ok := known()
		d.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-d.news:
		case <-deadline:
			t.Fatalf("%s does not hear of %s", d.name, what)
		}
	}
}

func (d *device) has(eventID id.EventID) func() bool {
	return func() bool {
		return slices.ContainsFunc(d.timeline, func(e *event.Event) bool { return e.ID == eventID })
	}
}

// knows tells of whether the timeline has the join of a user.
func (d *device) knows(room id.RoomID, user id.UserID) func() bool {
	return func() bool {
		return slices.ContainsFunc(d.timeline, func(e *event.Event) bool {
			return e.RoomID == room && e.Type == event.StateMember && e.GetStateKey() == user.String() && e.Content.AsMember().Membership == event.MembershipJoin
		})
	}
}

// must returns the id of an event that was sent.
func must(t *testing.T, r *mautrix.RespSendEvent, err error) id.EventID {
	t.Helper()
	if err != nil {
		t.Fatalf("send: %v", err)
	}
	return r.EventID
}

func TestConversation(t *testing.T) {
	harness.Each(t, func(t *testing.T, s *harness.Server) {
		ctx := t.Context()
		for _, localpart := range []string{"alice", "bob"} {
			client, err := mautrix.NewClient(s.URL, "", "")
			if err != nil {
				t.Fatal(err)
			}
			if _, err := client.RegisterDummy(ctx, &mautrix.ReqRegister[any]{Username: localpart, Password: harness.Password}); err != nil {
				t.Fatalf("register: %v", err)
			}
		}
		alice, phone := login(t, s, "alice", "ALICE"), login(t, s, "alice", "ALICEPHONE")
		bob, tablet := login(t, s, "bob", "BOB"), login(t, s, "bob", "BOBTABLET")
		all := []*device{alice, phone, bob, tablet}
		if err := bob.SetDisplayName(ctx, "Bob"); err != nil {
			t.Fatal(err)
		}
		created, err := alice.CreateRoom(ctx, &mautrix.ReqCreateRoom{Preset: "private_chat", Name: "Talk", Topic: "This and that", Invite: []id.UserID{bob.UserID}})
		if err != nil {
			t.Fatalf("create a room: %v", err)
		}
		room := created.RoomID
		tablet.until(t, "the invite", func() bool { return tablet.invites[room] })
		if _, err := bob.JoinRoomByID(ctx, room); err != nil {
			t.Fatalf("join: %v", err)
		}
		// From here to the end there are fewer events than one answer holds: what comes while a device sleeps leaves no gap.
		for _, d := range all {
			d.until(t, "the join", d.knows(room, bob.UserID))
		}
		last := talk(t, room, all)
		for _, d := range all {
			d.until(t, "the last message", d.has(last))
		}
		readAndType(t, room, alice, bob, tablet, last)
		compare(t, all)

		members, err := phone.JoinedMembers(ctx, room)
		if err != nil || len(members.Joined) != 2 || members.Joined[bob.UserID].DisplayName != "Bob" {
			t.Errorf("joined members: %v, %v", members, err)
		}
		if _, err := phone.LeaveRoom(ctx, room); err != nil {
			t.Errorf("leave: %v", err)
		}
		for _, d := range all {
			if _, err := d.Logout(ctx); err != nil {
				t.Errorf("log out %s: %v", d.name, err)
			}
			d.stop()
			<-d.ended // which reads the credentials
			d.ClearCredentials()
		}
		if _, err := alice.Whoami(ctx); err == nil || !errors.Is(err, mautrix.MMissingToken) {
			t.Errorf("after the logout: %v", err)
		}
	})
}

// talk lets all devices say something, edit, react and redact. It returns the last event.
func talk(t *testing.T, room id.RoomID, all []*device) (last id.EventID) {
	t.Helper()
	ctx := t.Context()
	var sent []id.EventID
	for i := range 40 {
		d := all[i%len(all)]
		r, err := d.SendText(ctx, room, fmt.Sprint("message ", i))
		sent = append(sent, must(t, r, err))
	}
	edit := &event.MessageEventContent{MsgType: event.MsgText, Body: "edited"}
	edit.SetEdit(sent[0])
	r, err := all[0].SendMessageEvent(ctx, room, event.EventMessage, edit)
	edited := must(t, r, err)
	r, err = all[2].SendReaction(ctx, room, sent[1], "👍")
	reaction := must(t, r, err)
	r, err = all[3].RedactEvent(ctx, room, sent[2], mautrix.ReqRedact{Reason: "a mistake"})
	redaction := must(t, r, err)
	all[1].until(t, "the redaction", all[1].has(redaction))
	for _, test := range []struct {
		eventID id.EventID
		ok      func(e *event.Event) bool
	}{
		{edited, func(e *event.Event) bool { return e.Content.AsMessage().RelatesTo.GetReplaceID() == sent[0] }},
		{reaction, func(e *event.Event) bool { return e.Content.AsReaction().RelatesTo.EventID == sent[1] }},
		{sent[2], func(e *event.Event) bool { return e.Unsigned.RedactedBecause != nil && len(e.Content.Raw) == 0 }},
	} {
		e, err := all[1].GetEvent(ctx, room, test.eventID)
		if err != nil {
			t.Fatalf("read an event: %v", err)
		}
		if err := e.Content.ParseRaw(e.Type); err != nil && !strings.Contains(err.Error(), "already") || !test.ok(e) {
			t.Errorf("the event is %+v, %v", e, err)
		}
	}
	return redaction
}

// readAndType sends receipts and typing notifications.
func readAndType(t *testing.T, room id.RoomID, alice, bob, tablet *device, last id.EventID) {
	t.Helper()
	if err := alice.MarkRead(t.Context(), room, last); err != nil {
		t.Fatalf("mark as read: %v", err)
	}
	bob.until(t, "the receipt", func() bool { return bob.receipts[alice.UserID] == last })
	if _, err := alice.UserTyping(t.Context(), room, true, 20*time.Second); err != nil {
		t.Fatalf("type: %v", err)
	}
	tablet.until(t, "typing", func() bool { return slices.Equal(tablet.typing, []id.UserID{alice.UserID}) })
	if _, err := alice.UserTyping(t.Context(), room, false, 0); err != nil {
		t.Fatalf("stop typing: %v", err)
	}
	tablet.until(t, "the end of typing", func() bool { return tablet.typed && len(tablet.typing) == 0 })
}

// compare checks that all devices have the same timeline, each event once.
func compare(t *testing.T, all []*device) {
	t.Helper()
	var want []id.EventID
	for _, d := range all {
		d.mu.Lock()
		var got []id.EventID
		for _, e := range d.timeline {
			got = append(got, e.ID)
		}
		d.mu.Unlock()
		if want == nil {
			want = got
		}
		if len(got) < 48 || !slices.Equal(got, want) {
			t.Errorf("%s has a timeline of %d events, %s of %d, or another", d.name, len(got), all[0].name, len(want))
		}
	}
}
