package datapath

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os/exec"
	"strings"
	"time"

	"github.com/heddle-net/heddle/test/bench/load"
)

// test is one sort of load and the figure that is read off it.
type test struct {
	name    string
	unit    string
	kind    load.Kind
	streams int
	sameCPU bool
	less    bool // less is better
	// figure reads the value; cost is the CPU time for one unit of work in seconds (unit: costUnit).
	value    func(client, server load.Result) float64
	costUnit string
	work     func(client, server load.Result) float64
}

var tests = []test{
	{
		name: "tcp1", unit: "Gbit/s", kind: load.Stream, streams: 1, costUnit: "s/GB",
		value: gigabits, work: gigabytes,
	},
	{
		name: "tcp4", unit: "Gbit/s", kind: load.Stream, streams: 4, costUnit: "s/GB",
		value: gigabits, work: gigabytes,
	},
	{
		name: "rr", unit: "µs", kind: load.RR, less: true, costUnit: "s/million",
		value: microseconds, work: millions,
	},
	{
		name: "rr-1cpu", unit: "µs", kind: load.RR, sameCPU: true, less: true, costUnit: "s/million",
		value: microseconds, work: millions,
	},
	{
		name: "connect", unit: "1/s", kind: load.Connect, costUnit: "s/million",
		value: func(c, _ load.Result) float64 { return float64(c.Count) / c.Elapsed.Seconds() }, work: millions,
	},
	{
		name: "udp64", unit: "packets/s", kind: load.UDP, costUnit: "s/million",
		value: func(_, s load.Result) float64 { return float64(s.Count) / s.Elapsed.Seconds() },
		work:  func(_, s load.Result) float64 { return float64(s.Count) / 1e6 },
	},
}

func gigabits(_, s load.Result) float64     { return float64(s.Bytes) * 8 / 1e9 / s.Elapsed.Seconds() }
func gigabytes(_, s load.Result) float64    { return float64(s.Bytes) / 1e9 }
func microseconds(c, _ load.Result) float64 { return c.Elapsed.Seconds() * 1e6 / float64(c.Count) }
func millions(c, _ load.Result) float64     { return float64(c.Count) / 1e6 }

// sample is what one run of one test in one network gave.
type sample struct {
	Network string  `json:"network"`
	Test    string  `json:"test"`
	Round   int     `json:"round"`
	Value   float64 `json:"value"`  // in the test's unit
	Cost    float64 `json:"cost"`   // CPU seconds for the unit of work
	Others  float64 `json:"others"` // CPUs that others used meanwhile
	Redone  int     `json:"redone"` // how often it was repeated for noise
}

const port = 7000

// run runs one test once.
func (t *test) run(ctx context.Context, n *network, length time.Duration) (value, cost, others float64, err error) {
	ctx, cancel := context.WithTimeout(ctx, length+20*time.Second)
	defer cancel()
	to := netip.AddrPortFrom(n.addr, port)
	clientCPU, serverCPU := 0, 1
	if t.sameCPU {
		serverCPU = 0
	}
	end := func(serve bool) (*exec.Cmd, *strings.Builder) {
		env, args := load.Command(serve, t.kind, to, length, t.streams)
		cmd := exec.CommandContext(ctx, "/proc/self/exe", args...)
		var stderr strings.Builder
		cmd.Env, cmd.Stderr = env, &stderr
		return cmd, &stderr
	}

	server, serverSays := end(true)
	out, err := server.StdoutPipe()
	if err != nil {
		return 0, 0, 0, err
	}
	if err := n.server.Start(server, serverCPU); err != nil {
		return 0, 0, 0, err
	}
	lines := bufio.NewReader(out)
	if line, err := lines.ReadString('\n'); err != nil || strings.TrimSpace(line) != load.Ready {
		return 0, 0, 0, fmt.Errorf("server: %w: %s", server.Wait(), serverSays)
	}

	client, clientSays := end(false)
	var clientOut strings.Builder
	client.Stdout = &clientOut
	before, err := readClock()
	if err != nil {
		return 0, 0, 0, err
	}
	if err := n.client.Start(client, clientCPU); err != nil {
		cancel()
		_ = server.Wait()
		return 0, 0, 0, err
	}
	clientErr := client.Wait()
	if clientErr != nil {
		cancel()
	}
	rest, _ := io.ReadAll(lines)
	serverErr := server.Wait()
	after, err := readClock()
	switch {
	case clientErr != nil:
		return 0, 0, 0, fmt.Errorf("client: %w: %s", clientErr, clientSays)
	case serverErr != nil:
		return 0, 0, 0, fmt.Errorf("server: %w: %s", serverErr, serverSays)
	case err != nil:
		return 0, 0, 0, err
	}

	var c, s load.Result
	if err := json.Unmarshal([]byte(clientOut.String()), &c); err != nil {
		return 0, 0, 0, fmt.Errorf("client: %w", err)
	}
	if err := json.Unmarshal(rest, &s); err != nil {
		return 0, 0, 0, fmt.Errorf("server: %w", err)
	}
	var cpu time.Duration
	for _, p := range []*exec.Cmd{client, server} {
		cpu += p.ProcessState.UserTime() + p.ProcessState.SystemTime()
	}
	own, noise, elapsed := spent(before, after, cpu)
	return t.value(c, s), own.Seconds() / t.work(c, s), noise.Seconds() / elapsed.Seconds(), nil
}

// noisy is how much CPU others may use during a test, in CPUs.
const noisy = 0.2

// quietly runs the test until others let it, or tries have run out.
func (t *test) quietly(ctx context.Context, n *network, round int, length time.Duration, tries int) (sample, error) {
	s := sample{Network: n.name, Test: t.name, Round: round}
	for ; ; s.Redone++ {
		var err error
		if s.Value, s.Cost, s.Others, err = t.run(ctx, n, length); err != nil {
			return s, fmt.Errorf("%s over %s: %w", t.name, n.name, err)
		}
		if s.Others <= noisy || s.Redone == tries {
			return s, nil
		}
	}
}
