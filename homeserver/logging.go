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
		log.SetFormatter(&logrus.JSONFormatter{TimestampFormat: time.RFC3339Nano})
	} else {
		log.SetFormatter(&logrus.TextFormatter{FullTimestamp: true, TimestampFormat: "2006-01-02 15:04:05.000"})
	}
	return log
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
