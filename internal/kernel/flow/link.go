package flow

import (
	"bytes"
	"context"
	"encoding/binary"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// namesAge is how long a name is believed: interfaces can be renamed, and gone.
	namesAge = 10 * time.Second
	// namesMax bounds the memory for names.
	namesMax = 8192
)

// linkNames knows interfaces by index. It is not safe for concurrent use.
type linkNames struct {
	ctx   context.Context
	ns    int
	conn  *conn
	names map[uint32]string
	since time.Time
}

// name returns an interface's name; empty when it is not known, or there is none.
func (l *linkNames) name(index uint32) string {
	if index == 0 {
		return ""
	}
	if l.names == nil || len(l.names) >= namesMax || time.Since(l.since) > namesAge {
		l.names, l.since = map[uint32]string{}, time.Now()
	}
	name, ok := l.names[index]
	if !ok {
		name = l.look(index)
		l.names[index] = name
	}
	return name
}

// look asks the kernel.
func (l *linkNames) look(index uint32) (name string) {
	if l.conn == nil {
		c, err := dial(l.ctx, l.ns, unix.NETLINK_ROUTE)
		if err != nil {
			return ""
		}
		l.conn = c
	}
	err := l.conn.ask(unix.RTM_GETLINK, 0, 1, func(_ int, b []byte) []byte {
		request := make([]byte, unix.SizeofIfInfomsg)
		binary.NativeEndian.PutUint32(request[4:], index)
		return append(b, request...)
	}, func(_ int, data []byte, err error) {
		if err != nil || len(data) < unix.SizeofIfInfomsg {
			return
		}
		for kind, value := range attributes(data[unix.SizeofIfInfomsg:]) {
			if kind == unix.IFLA_IFNAME {
				name = string(bytes.TrimRight(value, "\x00"))
				return
			}
		}
	})
	if err != nil {
		l.close()
	}
	return name
}

func (l *linkNames) close() {
	if l.conn != nil {
		l.conn.close()
		l.conn = nil
	}
}
