package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"time"
)

// Serve answers in the calling process's network namespace until ctx ends: HTTP on TCP port, with a
// line that says who answers, and the same bytes back on the UDP port of that number. ready is called once it
// listens.
func Serve(ctx context.Context, port uint16, who string, ready func()) error {
	address := ":" + strconv.Itoa(int(port))
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	u, err := net.ListenPacket("udp", address)
	if err != nil {
		return errors.Join(err, l.Close())
	}
	web := &http.Server{ReadHeaderTimeout: 5 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = fmt.Fprintf(w, "%s answers %s\n", who, r.RemoteAddr)
	})}
	stop := context.AfterFunc(ctx, func() { _ = errors.Join(web.Close(), u.Close()) })
	defer stop()
	done := make(chan error, 2)
	go func() { done <- web.Serve(l) }()
	go func() { done <- echo(u) }()
	ready()
	err = <-done
	_ = errors.Join(web.Close(), u.Close())
	if err2 := <-done; ctx.Err() == nil {
		return errors.Join(err, err2)
	}
	return nil
}

func echo(u net.PacketConn) error {
	b := make([]byte, 1<<16)
	for {
		n, from, err := u.ReadFrom(b)
		if err != nil {
			return err
		}
		if _, err := u.WriteTo(b[:n], from); err != nil && errors.Is(err, net.ErrClosed) {
			return err
		}
	}
}
