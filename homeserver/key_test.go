package homeserver

import (
	"context"
	"path/filepath"
	"testing"

	"github.com/myelin-im/myelin/homeserver/signingkey"
	"github.com/myelin-im/myelin/storage"
)

func TestRotateKey(t *testing.T) {
	cfg := testConfig(t, storage.SQLite)
	file := filepath.Join(cfg.Server.DataDir, "signing.key")
	s := run(t, cfg)
	before, err := signingkey.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := RotateKey(context.Background(), cfg); err == nil {
		t.Error("the key of a running server was changed")
	}
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	newID, oldID, err := RotateKey(context.Background(), cfg)
	if err != nil || oldID != before.ID || newID == before.ID {
		t.Errorf("rotated from %s: %s, %s, %v", before.ID, newID, oldID, err)
	}
	if now, err := signingkey.Load(file); err != nil || now.ID != newID || len(now.Old) != 1 || now.Old[0].ID != oldID {
		t.Errorf("the file: %s with %d old keys, %v", now.ID, len(now.Old), err)
	}
	if err := run(t, cfg).stop(); err != nil {
		t.Error(err)
	}
}
