//go:build goolm

package mautrix

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/crypto"
	"maunium.net/go/mautrix/crypto/backup"
	"maunium.net/go/mautrix/crypto/verificationhelper"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"github.com/myelin-im/myelin/test/harness"
)

// secretive is a device that encrypts, with mautrix's Olm and Megolm in pure Go.
type secretive struct {
	*mautrix.Client
	name     string
	mach     *crypto.OlmMachine
	verifier *verificationhelper.VerificationHelper

	crypto sync.Mutex // held while Olm sessions are used: the library lets sending and receiving get at one at the same time
	gate   sync.Mutex // held: the device takes nothing in

	mu     sync.Mutex
	bodies map[id.EventID]string       // decrypted
	sealed map[id.EventID]*event.Event // not decrypted yet
	spoken map[id.SessionID]int        // how many messages of its own a session has sealed
	joined map[id.UserID]bool
	asked  id.VerificationTransactionID
	ready  bool
	emojis []rune
	done   bool
	failed string
	why    error // why the last sealed event is sealed
	news   chan struct{}
}

// newSecretive logs a device in and lets it upload its keys and follow the server.
func newSecretive(t *testing.T, s *harness.Server, localpart, name string) *secretive {
	t.Helper()
	ctx := t.Context()
	client, err := mautrix.NewClient(s.URL, "", "")
	if err != nil {
		t.Fatal(err)
	}
	_, err = client.Login(ctx, &mautrix.ReqLogin{
		Type: mautrix.AuthTypePassword, Identifier: mautrix.UserIdentifier{Type: mautrix.IdentifierTypeUser, User: localpart},
		Password: harness.Password, DeviceID: id.DeviceID(name), StoreCredentials: true,
	})
	if err != nil {
		t.Fatalf("log in as %s: %v", localpart, err)
	}
	client.StateStore = mautrix.NewMemoryStateStore()
	d := &secretive{
		Client: client, name: name, bodies: map[id.EventID]string{}, sealed: map[id.EventID]*event.Event{}, spoken: map[id.SessionID]int{},
		joined: map[id.UserID]bool{}, news: make(chan struct{}, 1),
	}
	d.mach = crypto.NewOlmMachine(client, &client.Log, crypto.NewMemoryStore(nil), client.StateStore.(crypto.StateStore))
	if err := d.mach.Load(ctx); err != nil {
		t.Fatal(err)
	}
	if err := d.mach.ShareKeys(ctx, -1); err != nil {
		t.Fatalf("%s uploads keys: %v", name, err)
	}
	// As other clients do: what is known of one own device must not be taken for the list of all.
	if _, err := d.mach.FetchKeys(ctx, []id.UserID{client.UserID}, true); err != nil {
		t.Fatalf("%s asks for its user's devices: %v", name, err)
	}
	client.Crypto = d
	syncer := client.Syncer.(*mautrix.DefaultSyncer)
	syncer.OnSync(func(context.Context, *mautrix.RespSync, string) bool {
		d.gate.Lock()
		defer d.gate.Unlock()
		return true
	})
	syncer.OnSync(func(ctx context.Context, r *mautrix.RespSync, since string) bool {
		d.crypto.Lock()
		defer d.crypto.Unlock()
		return d.mach.ProcessSyncResponse(ctx, r, since)
	})
	syncer.OnEvent(client.StateStoreSyncHandler)
	syncer.OnEventType(event.StateMember, d.mach.HandleMemberEvent)
	syncer.OnEventType(event.StateMember, d.see)
	syncer.OnEvent(d.hear)
	d.verifier = verificationhelper.NewVerificationHelper(client, d.mach, nil, d, false, false, true)
	if err := d.verifier.Init(ctx); err != nil {
		t.Fatal(err)
	}
	following, stop := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = client.SyncWithContext(following)
	}()
	t.Cleanup(func() {
		stop()
		<-ended
	})
	return d
}

// hear is called with every event of a sync, after the messages to the device.
func (d *secretive) hear(ctx context.Context, e *event.Event) {
	if e.Type == event.EventEncrypted {
		d.mu.Lock()
		d.sealed[e.ID] = e
		d.mu.Unlock()
	}
	d.open(ctx)
	d.tell()
}

// see is called with every membership, after the library has taken it in.
func (d *secretive) see(_ context.Context, e *event.Event) {
	d.set(func() { d.joined[id.UserID(e.GetStateKey())] = e.Content.AsMember().Membership == event.MembershipJoin })
}

func (d *secretive) tell() {
	select {
	case d.news <- struct{}{}:
	default:
	}
}

// open decrypts what can be decrypted now.
func (d *secretive) open(ctx context.Context) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for eventID, e := range d.sealed {
		decrypted, err := d.mach.DecryptMegolmEvent(ctx, e)
		if err != nil {
			d.why = fmt.Errorf("%s of %s: %w", eventID, e.Content.AsEncrypted().SessionID, err)
			continue
		}
		delete(d.sealed, eventID)
		d.bodies[eventID] = decrypted.Content.AsMessage().Body
	}
}

// Encrypt implements mautrix.CryptoHelper.
func (d *secretive) Encrypt(ctx context.Context, room id.RoomID, typ event.Type, content any) (*event.EncryptedEventContent, error) {
	encrypted, err := d.seal(ctx, room, typ, content)
	if errors.Is(err, crypto.ErrSessionExpired) || errors.Is(err, crypto.ErrNoGroupSession) || errors.Is(err, crypto.ErrSessionNotShared) {
		members, err := d.StateStore.GetRoomJoinedOrInvitedMembers(ctx, room)
		if err != nil {
			return nil, err
		}
		// The library lists those who have left as well.
		members = slices.DeleteFunc(members, func(user id.UserID) bool {
			return !d.StateStore.IsMembership(ctx, room, user, event.MembershipJoin, event.MembershipInvite)
		})
		if err := d.mach.ShareGroupSession(ctx, room, members); err != nil {
			return nil, fmt.Errorf("share a session: %w", err)
		}
		return d.seal(ctx, room, typ, content)
	}
	return encrypted, err
}

// seal encrypts with the session of the moment.
func (d *secretive) seal(ctx context.Context, room id.RoomID, typ event.Type, content any) (*event.EncryptedEventContent, error) {
	encrypted, err := d.mach.EncryptMegolmEvent(ctx, room, typ, content)
	if err == nil {
		d.set(func() { d.spoken[encrypted.SessionID]++ })
	}
	return encrypted, err
}

// Decrypt implements mautrix.CryptoHelper.
func (d *secretive) Decrypt(ctx context.Context, e *event.Event) (*event.Event, error) {
	return d.mach.DecryptMegolmEvent(ctx, e)
}

// WaitForSession implements mautrix.CryptoHelper.
func (d *secretive) WaitForSession(ctx context.Context, room id.RoomID, sender id.SenderKey, session id.SessionID, timeout time.Duration) bool {
	return d.mach.WaitForSession(ctx, room, sender, session, timeout)
}

// RequestSession implements mautrix.CryptoHelper. Nobody has to ask: the server must not lose keys.
func (d *secretive) RequestSession(context.Context, id.RoomID, id.SenderKey, id.SessionID, id.UserID, id.DeviceID) {
}

// Init implements mautrix.CryptoHelper.
func (d *secretive) Init(context.Context) error { return nil }

// VerificationRequested implements verificationhelper.RequiredCallbacks.
func (d *secretive) VerificationRequested(_ context.Context, txn id.VerificationTransactionID, _ id.UserID, _ id.DeviceID) {
	d.set(func() { d.asked = txn })
}

// VerificationReady implements verificationhelper.RequiredCallbacks.
func (d *secretive) VerificationReady(context.Context, id.VerificationTransactionID, id.DeviceID, bool, bool, *verificationhelper.QRCode) {
	d.set(func() { d.ready = true })
}

// VerificationCancelled implements verificationhelper.RequiredCallbacks.
func (d *secretive) VerificationCancelled(_ context.Context, _ id.VerificationTransactionID, code event.VerificationCancelCode, reason string) {
	d.set(func() { d.failed = string(code) + ": " + reason })
}

// VerificationDone implements verificationhelper.RequiredCallbacks.
func (d *secretive) VerificationDone(context.Context, id.VerificationTransactionID, event.VerificationMethod) {
	d.set(func() { d.done = true })
}

// ShowSAS implements verificationhelper.ShowSASCallbacks.
func (d *secretive) ShowSAS(_ context.Context, _ id.VerificationTransactionID, emojis []rune, _ []string, _ []int) {
	d.set(func() { d.emojis = emojis })
}

func (d *secretive) set(fn func()) {
	d.mu.Lock()
	fn()
	d.mu.Unlock()
	d.tell()
}

// until waits until the device knows something.
func (d *secretive) until(t *testing.T, what string, known func() bool) {
	t.Helper()
	deadline := time.After(patience)
	for {
		d.open(t.Context())
		d.mu.Lock()
		ok := known()
		d.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-d.news:
		case <-time.After(100 * time.Millisecond): // not everything that is waited for comes by sync
		case <-deadline:
			d.mu.Lock()
			defer d.mu.Unlock()
			t.Fatalf("%s does not get to know %s: %d messages read, %d sealed: %v", d.name, what, len(d.bodies), len(d.sealed), d.why)
		}
	}
}

// say sends an encrypted message.
func (d *secretive) say(t *testing.T, room id.RoomID, body string) id.EventID {
	t.Helper()
	d.crypto.Lock()
	defer d.crypto.Unlock()
	r, err := d.SendText(t.Context(), room, body)
	return must(t, r, err)
}

// reads waits until all devices have read all messages. What was left out of a long timeline is in the history.
func reads(t *testing.T, room id.RoomID, devices []*secretive, messages map[id.EventID]string) {
	t.Helper()
	for _, d := range devices {
		d.take(d.history(t, room))
		d.until(t, "all messages", func() bool {
			for eventID := range messages {
				if _, ok := d.bodies[eventID]; !ok {
					return false
				}
			}
			return true
		})
		d.mu.Lock()
		for eventID, body := range messages {
			if d.bodies[eventID] != body {
				t.Errorf("%s reads %q, not %q", d.name, d.bodies[eventID], body)
			}
		}
		d.mu.Unlock()
	}
}

const (
	// eachWay is how many messages each user sends, half of them before the new device comes.
	eachWay = 200
	// rotation is after how many messages a session ends.
	rotation = 15
	// patience is how long a device waits for what must come, on a machine that does much else.
	patience = 2 * time.Minute
)

// converse lets the devices of two users talk in turns, each user sending n messages.
func converse(t *testing.T, room id.RoomID, what string, n int, users ...[]*secretive) map[id.EventID]string {
	t.Helper()
	said := map[id.EventID]string{}
	for i := range n {
		for _, devices := range users {
			d := devices[i%len(devices)]
			body := fmt.Sprintf("%s %d by %s", what, i, d.name)
			said[d.say(t, room, body)] = body
		}
	}
	return said
}

// rotated checks that the devices have begun new sessions as often as they should.
func rotated(t *testing.T, devices []*secretive) {
	t.Helper()
	for _, d := range devices {
		d.mu.Lock()
		total := 0
		for session, n := range d.spoken {
			if total += n; n > rotation {
				t.Errorf("%s has sealed %d messages with session %s", d.name, n, session)
			}
		}
		if total <= rotation || len(d.spoken) < total/rotation {
			t.Errorf("%s has sealed %d messages with %d sessions", d.name, total, len(d.spoken))
		}
		d.mu.Unlock()
	}
}

func TestEncryption(t *testing.T) {
	harness.Each(t, func(t *testing.T, s *harness.Server) { testEncryption(t, s, s) })
}

func TestEncryptionBetweenServers(t *testing.T) {
	harness.EachFederation(t, 2, func(t *testing.T, servers []*harness.Server) { testEncryption(t, servers[0], servers[1]) })
}

// testEncryption lets alice of one server and bob of another one, with two devices each, talk in an encrypted room. Every
// message is read on every device that should be able to, and on no other.
func testEncryption(t *testing.T, here, there *harness.Server) {
	ctx := t.Context()
	here.Register(t, "alice")
	there.Register(t, "bob")
	alice, phone := newSecretive(t, here, "alice", "ALICE"), newSecretive(t, here, "alice", "ALICEPHONE")
	bob, tablet := newSecretive(t, there, "bob", "BOB"), newSecretive(t, there, "bob", "BOBTABLET")
	hers, his := []*secretive{alice, phone}, []*secretive{bob, tablet}
	devices := slices.Concat(hers, his)

	room := meet(t, here, alice, bob)
	meets(t, devices, alice.UserID, bob.UserID)
	first := converse(t, room, "first", eachWay/2, hers, his)
	reads(t, room, devices, first)

	// A device in the middle reads what comes from now on.
	laptop := newSecretive(t, there, "bob", "BOBLAPTOP")
	meets(t, []*secretive{laptop}, alice.UserID, bob.UserID)
	for _, d := range devices {
		d.until(t, "the new device", func() bool { return d.knows(ctx, bob.UserID, laptop.DeviceID) })
	}
	his, devices = append(his, laptop), append(devices, laptop)
	second := converse(t, room, "second", eachWay/2, hers, his)
	reads(t, room, devices, second)
	laptop.readsNone(t, first)
	rotated(t, devices)

	crossSign(t, alice, bob)
	verify(t, alice, bob)
	restore(t, bob, laptop)
	reads(t, room, []*secretive{laptop}, first)

	leave(t, room, there, devices, tablet)
}

// meet has alice make an encrypted room that bob joins.
func meet(t *testing.T, here *harness.Server, alice, bob *secretive) id.RoomID {
	t.Helper()
	key := ""
	created, err := alice.CreateRoom(t.Context(), &mautrix.ReqCreateRoom{Preset: "private_chat", Invite: []id.UserID{bob.UserID}, InitialState: []*event.Event{{
		Type: event.StateEncryption, StateKey: &key,
		Content: event.Content{Parsed: &event.EncryptionEventContent{Algorithm: id.AlgorithmMegolmV1, RotationPeriodMessages: rotation}},
	}}})
	if err != nil {
		t.Fatalf("create a room: %v", err)
	}
	if _, err := bob.JoinRoom(t.Context(), created.RoomID.String(), &mautrix.ReqJoinRoom{Via: []string{here.Name}}); err != nil {
		t.Fatalf("join: %v", err)
	}
	return created.RoomID
}

// meets waits until devices know that users are in the room.
func meets(t *testing.T, devices []*secretive, users ...id.UserID) {
	t.Helper()
	for _, d := range devices {
		d.until(t, "the members", func() bool { return !slices.ContainsFunc(users, func(u id.UserID) bool { return !d.joined[u] }) })
	}
}

// leave removes a user who has come, and logs a device out. Neither can read what is said then, even if it is handed to
// them.
func leave(t *testing.T, room id.RoomID, there *harness.Server, devices []*secretive, lost *secretive) {
	ctx := t.Context()
	alice := devices[0]
	there.Register(t, "carol")
	carol := newSecretive(t, there, "carol", "CAROL")
	if _, err := alice.InviteUser(ctx, room, &mautrix.ReqInviteUser{UserID: carol.UserID}); err != nil {
		t.Fatalf("invite: %v", err)
	}
	carol.join(t, room)
	all := append(slices.Clip(devices), carol)
	meets(t, all, carol.UserID, alice.UserID, lost.UserID)
	third := converse(t, room, "third", len(all), all)
	reads(t, room, all, third)

	if _, err := alice.KickUser(ctx, room, &mautrix.ReqKickUser{UserID: carol.UserID}); err != nil {
		t.Fatalf("kick: %v", err)
	}
	if _, err := lost.Logout(ctx); err != nil {
		t.Fatalf("log out: %v", err)
	}
	rest := slices.DeleteFunc(slices.Clone(devices), func(d *secretive) bool { return d == lost })
	for _, d := range rest {
		d.until(t, "the end of carol's stay", func() bool { return !d.joined[carol.UserID] })
		d.until(t, "the end of a device", func() bool { return !d.knows(ctx, lost.UserID, lost.DeviceID) })
	}
	fourth := converse(t, room, "fourth", rotation+2, rest)
	reads(t, room, rest, fourth)
	for _, d := range []*secretive{carol, lost} {
		d.take(alice.history(t, room))
		d.open(ctx)
		d.readsNone(t, fourth)
	}
}

// join joins a room that the device's user is invited to, as soon as the invite is there.
func (d *secretive) join(t *testing.T, room id.RoomID) {
	t.Helper()
	d.until(t, "the invite", func() bool {
		_, err := d.JoinRoomByID(t.Context(), room)
		return err == nil
	})
}

// readsNone checks that a device reads none of these messages.
func (d *secretive) readsNone(t *testing.T, messages map[id.EventID]string) {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	for eventID := range messages {
		if body, ok := d.bodies[eventID]; ok {
			t.Errorf("%s reads %q", d.name, body)
		}
	}
}

// knows tells whether the device's list of a user's devices, which it keeps by device_lists, has one.
func (d *secretive) knows(ctx context.Context, user id.UserID, device id.DeviceID) bool {
	known, err := d.mach.CryptoStore.GetDevice(ctx, user, device)
	return err == nil && known != nil
}

// history reads all encrypted messages of the room.
func (d *secretive) history(t *testing.T, room id.RoomID) (sealed []*event.Event) {
	t.Helper()
	from := ""
	for {
		page, err := d.Messages(t.Context(), room, from, "", mautrix.DirectionBackward, nil, 100)
		if err != nil {
			t.Fatalf("read the history: %v", err)
		}
		for _, e := range page.Chunk {
			if err := e.Content.ParseRaw(e.Type); err == nil && e.Type == event.EventEncrypted {
				sealed = append(sealed, e)
			}
		}
		if from = page.End; from == "" {
			return sealed
		}
	}
}

// take hands the device encrypted messages.
func (d *secretive) take(sealed []*event.Event) {
	d.set(func() {
		for _, e := range sealed {
			if _, known := d.bodies[e.ID]; !known {
				d.sealed[e.ID] = e
			}
		}
	})
}

// crossSign gives both users cross-signing keys, with which they sign the device that made them.
func crossSign(t *testing.T, devices ...*secretive) {
	t.Helper()
	ctx := t.Context()
	for _, d := range devices {
		if _, _, err := d.mach.GenerateAndUploadCrossSigningKeysWithPassword(ctx, harness.Password, ""); err != nil {
			t.Fatalf("%s makes cross-signing keys: %v", d.name, err)
		}
		if err := d.mach.SignOwnMasterKey(ctx); err != nil {
			t.Fatalf("%s signs the master key: %v", d.name, err)
		}
		if err := d.mach.SignOwnDevice(ctx, d.mach.OwnIdentity()); err != nil {
			t.Fatalf("%s signs itself: %v", d.name, err)
		}
	}
	for i, d := range devices {
		other := devices[1-i]
		d.until(t, "the other's cross-signing keys", func() bool {
			keys, err := d.mach.GetCrossSigningPublicKeys(ctx, other.UserID)
			return err == nil && keys != nil && keys.MasterKey != "" && keys.SelfSigningKey != ""
		})
	}
}

// verify compares emojis.
func verify(t *testing.T, alice, bob *secretive) {
	t.Helper()
	ctx := t.Context()
	txn, err := alice.verifier.StartVerification(ctx, bob.UserID)
	if err != nil {
		t.Fatalf("start the verification: %v", err)
	}
	step := func(d *secretive, what string, done func() bool) {
		t.Helper()
		d.until(t, what, func() bool {
			if d.failed != "" {
				t.Fatalf("the verification was cancelled: %s", d.failed)
			}
			return done()
		})
	}
	step(bob, "the request", func() bool { return bob.asked == txn })
	if err := bob.verifier.AcceptVerification(ctx, txn); err != nil {
		t.Fatalf("accept the verification: %v", err)
	}
	step(alice, "that bob is ready", func() bool { return alice.ready })
	if err := alice.verifier.StartSAS(ctx, txn); err != nil {
		t.Fatalf("start comparing: %v", err)
	}
	for _, d := range []*secretive{alice, bob} {
		step(d, "emojis", func() bool { return len(d.emojis) > 0 })
	}
	if !slices.Equal(alice.emojis, bob.emojis) {
		t.Fatalf("alice sees %q, bob %q", string(alice.emojis), string(bob.emojis))
	}
	// The library takes the wrong master key for the other's if it has the other's confirmation before its own.
	alice.gate.Lock()
	bob.gate.Lock()
	for _, d := range []*secretive{alice, bob} {
		if err := d.verifier.ConfirmSAS(ctx, txn); err != nil {
			t.Errorf("%s confirms: %v", d.name, err)
		}
	}
	alice.gate.Unlock()
	bob.gate.Unlock()
	for _, d := range []*secretive{alice, bob} {
		step(d, "the end of the verification", func() bool { return d.done })
	}
	for i, d := range []*secretive{alice, bob} {
		other := []*secretive{bob, alice}[i].UserID
		d.until(t, "that the other is trusted", func() bool {
			if _, err := d.mach.FetchKeys(ctx, []id.UserID{other}, true); err != nil {
				return false
			}
			trusted, err := d.mach.IsUserTrusted(ctx, other)
			return err == nil && trusted
		})
	}
}

// restore backs up the sessions of one device and restores them on another.
func restore(t *testing.T, from, to *secretive) {
	t.Helper()
	ctx := t.Context()
	secret, err := backup.NewMegolmBackupKey()
	if err != nil {
		t.Fatal(err)
	}
	version, err := from.CreateKeyBackupVersion(ctx, &mautrix.ReqRoomKeysVersionCreate[backup.MegolmAuthData]{
		Algorithm: id.KeyBackupAlgorithmMegolmBackupV1,
		AuthData:  backup.MegolmAuthData{PublicKey: id.Ed25519(encodeKey(secret))},
	})
	if err != nil {
		t.Fatalf("make a backup: %v", err)
	}
	sessions, err := from.mach.CryptoStore.GetAllGroupSessions(ctx).AsList()
	if err != nil {
		t.Fatal(err)
	}
	keys := mautrix.ReqKeyBackup{Rooms: map[id.RoomID]mautrix.ReqRoomKeyBackup{}}
	for _, session := range sessions {
		exported, err := session.Internal.Export(session.Internal.FirstKnownIndex())
		if err != nil {
			t.Fatal(err)
		}
		sealed, err := backup.EncryptSessionData(secret, backup.MegolmSessionData{
			Algorithm: id.AlgorithmMegolmV1, ForwardingKeyChain: []string{}, SenderKey: session.SenderKey,
			SenderClaimedKeys: backup.SenderClaimedKeys{Ed25519: session.SigningKey}, SessionKey: string(exported),
		})
		if err != nil {
			t.Fatal(err)
		}
		data, err := json.Marshal(sealed)
		if err != nil {
			t.Fatal(err)
		}
		if keys.Rooms[session.RoomID].Sessions == nil {
			keys.Rooms[session.RoomID] = mautrix.ReqRoomKeyBackup{Sessions: map[id.SessionID]mautrix.ReqKeyBackupData{}}
		}
		keys.Rooms[session.RoomID].Sessions[session.ID()] = mautrix.ReqKeyBackupData{FirstMessageIndex: int(session.Internal.FirstKnownIndex()), IsVerified: true, SessionData: data}
	}
	r, err := from.PutKeysInBackup(ctx, version.Version, &keys)
	if err != nil || r.Count != len(sessions) {
		t.Fatalf("back up %d sessions: %+v, %v", len(sessions), r, err)
	}
	if _, err := to.mach.DownloadAndStoreLatestKeyBackup(ctx, secret); err != nil {
		t.Fatalf("restore: %v", err)
	}
}

// encodeKey is the public part of a backup's key.
func encodeKey(key *backup.MegolmBackupKey) string {
	return base64.RawStdEncoding.EncodeToString(key.PublicKey().Bytes())
}
