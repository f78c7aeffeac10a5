// Package zaplog leads the log of etcd's client and server, which speak zap, into a slog.Logger.
package zaplog

import (
	"context"
	"log/slog"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// New returns a zap logger that writes records of at least the level to l, except for those that are no
// news by their message and their field "error", which is empty where there is none. noNews may be nil.
// Where l is nil nothing is written.
func New(l *slog.Logger, level zapcore.Level, noNews func(message, err string) bool) *zap.Logger {
	if l == nil {
		return zap.NewNop()
	}
	return zap.New(&core{LevelEnabler: level, handler: l.Handler(), noNews: noNews})
}

type core struct {
	zapcore.LevelEnabler
	handler slog.Handler
	noNews  func(message, err string) bool
}

// With implements zapcore.Core.
func (c *core) With(fields []zapcore.Field) zapcore.Core {
	return &core{c.LevelEnabler, c.handler.WithAttrs(attrs(fields)), c.noNews}
}

// Check implements zapcore.Core.
func (c *core) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if !c.Enabled(e.Level) || !c.handler.Enabled(context.Background(), level(e.Level)) {
		return ce
	}
	return ce.AddCore(e, c)
}

// Write implements zapcore.Core.
func (c *core) Write(e zapcore.Entry, fields []zapcore.Field) error {
	if c.noNews != nil && c.noNews(e.Message, errorOf(fields)) {
		return nil
	}
	r := slog.NewRecord(e.Time, level(e.Level), e.Message, 0)
	r.AddAttrs(attrs(fields)...)
	return c.handler.Handle(context.Background(), r)
}

func errorOf(fields []zapcore.Field) string {
	for _, f := range fields {
		if err, ok := f.Interface.(error); ok && f.Key == "error" {
			return err.Error()
		}
	}
	return ""
}

// Sync implements zapcore.Core.
func (c *core) Sync() error { return nil }

func level(l zapcore.Level) slog.Level {
	switch {
	case l <= zapcore.DebugLevel:
		return slog.LevelDebug
	case l == zapcore.InfoLevel:
		return slog.LevelInfo
	case l == zapcore.WarnLevel:
		return slog.LevelWarn
	}
	return slog.LevelError
}

func attrs(fields []zapcore.Field) []slog.Attr {
	enc := zapcore.NewMapObjectEncoder()
	out := make([]slog.Attr, 0, len(fields))
	for _, f := range fields {
		f.AddTo(enc)
	}
	for _, f := range fields {
		if v, ok := enc.Fields[f.Key]; ok {
			out = append(out, slog.Any(f.Key, v))
			delete(enc.Fields, f.Key)
		}
	}
	return out
}
