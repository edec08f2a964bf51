package roomserver

import (
	"embed"

	"github.com/myelin-im/myelin/storage"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Schema is the part of the database that belongs to rooms.
var Schema = storage.Schema{Feature: "roomserver", FS: migrations}

// The tables that units write on the hot path; columns as in migrations.
var (
	eventsTable = storage.DeclareTable("events", storage.Insert,
		storage.Col("nid", storage.Int), storage.Col("room", storage.Int), storage.Col("event_id", storage.Bytes),
		storage.Col("flags", storage.Int), storage.Col("anchor", storage.Int), storage.Col("sub", storage.Int),
		storage.Col("state_before", storage.Int), storage.Col("ts", storage.Int), storage.Col("state_after", storage.Int),
		storage.Col("chain_order", storage.Int), storage.Col("chain", storage.Bytes), storage.Col("txn", storage.Bytes), storage.Col("json", storage.Bytes))
	packsTable = storage.DeclareTable("state_packs", storage.Insert,
		storage.Col("room", storage.Int), storage.Col("pack", storage.Int), storage.Col("data", storage.Bytes))
	stateLogTable = storage.DeclareTable("state_log", storage.Insert,
		storage.Col("room", storage.Int), storage.Col("pos", storage.Int),
		storage.Col("old_root", storage.Int), storage.Col("new_root", storage.Int))
	headsTable = storage.DeclareTable("room_heads", storage.Put,
		storage.Key("room", storage.Int), storage.Col("extremities", storage.Bytes),
		storage.Col("state", storage.Int), storage.Col("pos", storage.Int))
	membersTable = storage.DeclareTable("room_members", storage.Put,
		storage.Key("room", storage.Int), storage.Key("user_id", storage.Bytes), storage.Col("membership", storage.Bytes),
		storage.Col("event", storage.Int), storage.Col("pos", storage.Int),
		storage.Col("local", storage.Bool), storage.Col("forgotten", storage.Bool))
	txnsTable = storage.DeclareTable("send_txns", storage.Insert,
		storage.Key("key", storage.Bytes), storage.Col("event", storage.Int), storage.Col("ts", storage.Int))
	// newTxnsTable is for transactions that are certainly not there, unless as an old row that has not been deleted yet.
	newTxnsTable = storage.DeclareTable("send_txns", storage.InsertNew,
		storage.Key("key", storage.Bytes), storage.Col("event", storage.Int), storage.Col("ts", storage.Int))
	roomsTable = storage.DeclareTable("rooms", storage.Insert,
		storage.Key("nid", storage.Int), storage.Col("room_id", storage.Bytes),
		storage.Col("version", storage.Bytes), storage.Col("seed", storage.Bytes))
	redactionsTable = storage.DeclareTable("redactions", storage.Put,
		storage.Key("room", storage.Int), storage.Key("target", storage.Bytes), storage.Key("redaction", storage.Int),
		storage.Col("applied", storage.Bool))
)
