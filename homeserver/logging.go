package homeserver

import (
	"bytes"
	"io"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/myelin-im/myelin/homeserver/config"
)

// NewLogger makes the logger of a server, which writes to w.
func NewLogger(cfg config.Logging, w io.Writer) *logrus.Logger {
	log := logrus.New()
	log.SetOutput(w)
	// The configuration admits only names of levels; anything else is a caller's mistake, to be heard.
	level, err := logrus.ParseLevel(cfg.Level)
	if err != nil {
		level = logrus.DebugLevel
	}
	log.SetLevel(level)
	if cfg.Format == "json" {
		log.SetFormatter(once{&logrus.JSONFormatter{TimestampFormat: time.RFC3339Nano}})
	} else {
		log.SetFormatter(once{&logrus.TextFormatter{FullTimestamp: true, TimestampFormat: "2006-01-02 15:04:05.000"}})
	}
	return log
}

// once leaves out what failed only because the database takes nothing. The database has told that itself, and while it lasts
// everything that writes fails and is tried again: the lines would bury all others. At the debug level nothing is left out.
type once struct {
	logrus.Formatter
}

// Format implements logrus.Formatter.
func (o once) Format(entry *logrus.Entry) ([]byte, error) {
	err, ok := entry.Data[logrus.ErrorKey].(error)
	if ok && unavailable(err) && !entry.Logger.IsLevelEnabled(logrus.DebugLevel) {
		return nil, nil
	}
	return o.Formatter.Format(entry)
}

// lineLogger logs each line written to it at the debug level: what net/http has to say, which is mostly about
// clients that hung up and strangers that speak no TLS.
type lineLogger struct {
	log *logrus.Entry
}

// Write implements io.Writer.
func (l lineLogger) Write(line []byte) (int, error) {
	l.log.Debug(string(bytes.TrimSpace(line)))
	return len(line), nil
}
