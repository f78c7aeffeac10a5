// Package load makes network load and counts it: one process sends, one receives. It uses bare system
// calls in a single thread, so that what is measured is the kernel and not this program.
package load

import (
	"encoding/json"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"runtime/debug"
	"time"
)

// Kind is a sort of load.
type Kind string

// The kinds of load.
const (
	Stream  Kind = "stream"  // bytes one way over TCP
	RR      Kind = "rr"      // one byte there and back, again and again, over one TCP connection
	Connect Kind = "connect" // connect, one byte there and back, close
	UDP     Kind = "udp"     // 64-byte datagrams one way
)

// Result is what one end counted.
type Result struct {
	Bytes   uint64        `json:"bytes"`   // Stream: received
	Count   uint64        `json:"count"`   // round trips, connections, datagrams sent or received
	Elapsed time.Duration `json:"elapsed"` // nanoseconds
}

// Ready is the line that a server prints when a client may begin.
const Ready = "ready"

// Main runs one end:
//
//	load -serve -kind K -addr A:P            prints Ready; ends when its clients have gone, prints a Result
//	load -kind K -addr A:P -time D -streams N   prints a Result
func Main(args []string) error {
	fs := flag.NewFlagSet("load", flag.ContinueOnError)
	serve := fs.Bool("serve", false, "receive")
	kind := fs.String("kind", string(Stream), "stream, rr, connect or udp")
	addr := fs.String("addr", "", "address and port of the server")
	length := fs.Duration("time", time.Second, "how long to send")
	streams := fs.Int("streams", 1, "TCP connections at once, for stream")
	if err := fs.Parse(args); err != nil {
		return err
	}
	to, err := netip.ParseAddrPort(*addr)
	if err != nil {
		return err
	}
	// One thread, no collector and no preemption: system calls here go around the scheduler.
	runtime.LockOSThread()
	debug.SetGCPercent(-1)

	var r Result
	switch k := Kind(*kind); {
	case k == Stream && *serve:
		r, err = serveStream(to, *streams)
	case k == Stream:
		r, err = sendStream(to, *streams, *length)
	case k == RR && *serve:
		r, err = serveRR(to)
	case k == RR:
		r, err = sendRR(to, *length)
	case k == Connect && *serve:
		r, err = serveConnect(to)
	case k == Connect:
		r, err = sendConnect(to, *length)
	case k == UDP && *serve:
		r, err = serveUDP(to)
	case k == UDP:
		r, err = sendUDP(to, *length)
	default:
		err = fmt.Errorf("kind %q: want stream, rr, connect or udp", k)
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w", *kind, to, err)
	}
	return json.NewEncoder(os.Stdout).Encode(r)
}

// Command is the environment and the arguments with which this very program runs one end.
func Command(serve bool, k Kind, addr netip.AddrPort, length time.Duration, streams int) (env, args []string) {
	args = []string{
		"load", "-kind", string(k), "-addr", addr.String(),
		"-time", length.String(), "-streams", fmt.Sprint(streams),
	}
	if serve {
		args = append(args, "-serve")
	}
	return append(os.Environ(), "GODEBUG=asyncpreemptoff=1", "GOMAXPROCS=1"), args
}

func ready() { fmt.Println(Ready) }
