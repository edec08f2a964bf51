package e2ee

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"io"
	"sync/atomic"
	"testing"

	"github.com/sirupsen/logrus"

	"github.com/myelin-im/myelin/accounts"
	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/signing"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/storage"
	"github.com/myelin-im/myelin/storage/storagetest"
)

// noRooms is what accounts ask of rooms, of which these tests need nothing.
type noRooms struct{}

func (noRooms) ProfileChanged(context.Context, string, accounts.ProfileChange) error { return nil }
func (noRooms) LeaveAll(context.Context, string) error                               { return nil }
func (noRooms) Known(context.Context, string) (bool, error)                          { return false, nil }

// newAPI makes the API on a database.
func newAPI(t testing.TB, db *storage.DB) *API {
	t.Helper()
	logger := logrus.New()
	logger.SetOutput(io.Discard)
	log := logrus.NewEntry(logger)
	rooms, err := roomserver.New(db, roomserver.Options{ServerName: "hs", KeyID: "ed25519:1", Key: ed25519.NewKeyFromSeed(make([]byte, 32)), Log: log})
	if err != nil {
		t.Fatal(err)
	}
	a, err := New(Deps{DB: db, Rooms: rooms, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	acc, err := accounts.New(accounts.Config{ServerName: "hs"}, accounts.Deps{DB: db, Rooms: noRooms{}, Log: log, Hooks: []accounts.Hooks{a.Hooks()}})
	if err != nil {
		t.Fatal(err)
	}
	a.SetAccounts(acc)
	return a
}

// eachDB runs a benchmark on both databases.
func eachDB(b *testing.B, fn func(b *testing.B, a *API)) {
	for _, d := range storagetest.Dialects {
		b.Run(d.String(), func(b *testing.B) {
			fn(b, newAPI(b, storagetest.Open(b, d, roomserver.Schema, accounts.Schema, Schema)))
		})
	}
}

func benchUser(i int) string { return fmt.Sprintf("@user%03d:hs", i) }

// populate makes users with devices that have keys, and cross-signing keys.
func populate(b *testing.B, a *API, users, devices int) {
	b.Helper()
	for u := range users {
		user := benchUser(u)
		err := a.db.Write(b.Context(), func(tx *storage.Tx) error {
			for d := range devices {
				id := fmt.Sprintf("DEVICE%04d", d)
				if _, err := a.accounts.AddDevice(tx, user, id, &id); err != nil {
					return err
				}
				keys, err := checkDeviceKeys(benchKeys(user, id), user, id)
				if err != nil {
					return err
				}
				if err := (&keyUpload{user: user, device: id, identity: keys}).write(tx); err != nil {
					return err
				}
			}
			for _, usage := range []string{usageMaster, usageSelfSigning, usageUserSigning} {
				content := fmt.Sprintf(`{"keys":{"ed25519:%s":"%s"},"usage":["%s"],"user_id":"%s"}`, usage, usage, usage, user)
				if err := putCrossSigningKey(tx, user, crossSigningKey{usage, usage, []byte(content)}); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
	}
}

func benchKeys(user, id string) []byte {
	const key, sig = "3C5BFWi2Y8MaVvjM8M22DBmh24PmgR0nPvJOIArzgyI", "dSO80A01XiigH3uBiDVx/EjzaoycHcjq9lfQX0uWsqxl2giMIiSPR8a4d291W1ihKJL/a+myXS367WT6NAIcBA"
	return fmt.Appendf(nil, `{"user_id":"%s","device_id":"%s","algorithms":["m.olm.v1.curve25519-aes-sha2","m.megolm.v1.aes-sha2"],
		"keys":{"curve25519:%s":"%s","ed25519:%s":"%s"},"signatures":{"%s":{"ed25519:%s":"%s"}}}`, user, id, id, key, id, key, user, id, sig)
}

// BenchmarkQuery asks for the keys of 200 users with five devices each: with what it needs in memory, and without.
func BenchmarkQuery(b *testing.B) {
	eachDB(b, func(b *testing.B, a *API) {
		populate(b, a, 200, 5)
		in := &queryRequest{DeviceKeys: queriedDevices{}}
		for i := range 200 {
			in.DeviceKeys[benchUser(i)] = nil
		}
		by := &httpapi.Caller{UserID: benchUser(0), DeviceID: "DEVICE0000"}
		for _, mode := range []string{"warm", "cold"} {
			b.Run(mode, func(b *testing.B) {
				var buf []byte
				for b.Loop() {
					if mode == "cold" {
						a.identities.Clear()
					}
					out, err := a.query(b.Context(), by, in)
					if err != nil {
						b.Fatal(err)
					}
					if buf, err = out.AppendJSON(buf[:0]); err != nil || len(buf) < 400_000 {
						b.Fatalf("%d bytes, %v", len(buf), err)
					}
				}
			})
		}
	})
}

// BenchmarkUpload stores fifty one-time keys, whose signatures are checked.
func BenchmarkUpload(b *testing.B) {
	eachDB(b, func(b *testing.B, a *API) {
		populate(b, a, 1, 1)
		by := &httpapi.Caller{UserID: benchUser(0), DeviceID: "DEVICE0000"}
		const keyID = "ed25519:DEVICE0000"
		private := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
		sign := func(text string) json.RawMessage {
			signed, err := signing.SignJSON([]byte(text), by.UserID, keyID, private)
			if err != nil {
				b.Fatal(err)
			}
			return signed
		}
		public := signing.EncodeBase64(private.Public().(ed25519.PublicKey))
		identity := sign(fmt.Sprintf(`{"user_id":"%s","device_id":"%s","algorithms":[],"keys":{"%s":"%s"}}`, by.UserID, by.DeviceID, keyID, public))
		if _, err := a.upload(b.Context(), by, &uploadRequest{DeviceKeys: identity}); err != nil {
			b.Fatal(err)
		}
		key := sign(`{"key":"zKbLg+NrIjpnagy+pIY6uPL4ZwEG2v+8F9lmgsnlZzs"}`)
		n := 0
		for b.Loop() {
			in := &uploadRequest{OneTimeKeys: map[string]json.RawMessage{}}
			for i := range 50 {
				in.OneTimeKeys[fmt.Sprintf("signed_curve25519:%d_%d", n, i)] = key
			}
			n++
			if _, err := a.upload(b.Context(), by, in); err != nil {
				b.Fatal(err)
			}
			if n%20 == 0 {
				b.StopTimer()
				err := a.db.Write(b.Context(), func(tx *storage.Tx) error {
					_, err := tx.Exec(`DELETE FROM one_time_keys WHERE user_id = $1`, by.UserID)
					return err
				})
				if err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		}
	})
}

// BenchmarkSendToDevice sends messages from many devices at once to others.
func BenchmarkSendToDevice(b *testing.B) {
	eachDB(b, func(b *testing.B, a *API) {
		populate(b, a, 100, 1)
		var n atomic.Int64
		content := json.RawMessage(fmt.Sprintf(`{"ciphertext":"%01000d"}`, 0))
		b.ResetTimer()
		b.SetParallelism(50)
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				i := int(n.Add(1))
				by := &httpapi.Caller{UserID: benchUser(i % 100), DeviceID: "DEVICE0000"}
				in := &toDeviceRequest{Type: "m.room.encrypted", Txn: fmt.Sprint(i), Messages: messages{benchUser(i * 7 % 100): {"DEVICE0000": content}}}
				if _, err := a.sendToDevice(context.Background(), by, in); err != nil {
					b.Error(err)
					return
				}
			}
		})
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "messages/s")
	})
}
