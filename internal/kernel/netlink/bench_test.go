package netlink

import (
	"context"
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/internal/plan"
)

// cpu is the processor time of this process so far.
func cpu() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// phases adds up wall and processor time by name.
type phases map[string][2]time.Duration

func (p phases) time(name string, f func()) {
	wall, busy := time.Now(), cpu()
	f()
	x := p[name]
	p[name] = [2]time.Duration{x[0] + time.Since(wall), x[1] + cpu() - busy}
}

func (p phases) report(b *testing.B) {
	for name, x := range p {
		b.ReportMetric(float64(x[0].Microseconds())/float64(b.N), name+"-µs")
		b.ReportMetric(float64(x[1].Microseconds())/float64(b.N), name+"-cpu-µs")
	}
}

// BenchmarkAttachDetach attaches pods to a node, each in a namespace of its own, which is counted apart.
func BenchmarkAttachDetach(b *testing.B) {
	for name, pod := range map[string]func(int) plan.Pod{"bridge": bridged, "routed": routed} {
		b.Run(name, func(b *testing.B) {
			node, d := newNode(b)
			apply(b, d, bridgePlan())
			pods := newPods(b, node)
			ctx, p := context.Background(), pod(3)
			b.ResetTimer()
			ph := phases{}
			for range b.N {
				var s *space
				ph.time("netns", func() { s = bareSpace(b) })
				ph.time("attach", func() { attach(b, pods, s, p) })
				ph.time("verify", func() {
					if err := pods.Verify(ctx, s.file, p); err != nil {
						b.Fatal(err)
					}
				})
				ph.time("detach", func() {
					if err := pods.Detach(ctx, p.Host.Name); err != nil {
						b.Fatal(err)
					}
				})
				s.file.Close()
			}
			ph.report(b)
		})
	}
}

// BenchmarkAttachParts shows where an attachment's time goes.
func BenchmarkAttachParts(b *testing.B) {
	node, d := newNode(b)
	apply(b, d, bridgePlan())
	pods := newPods(b, node)
	p := bridged(3)
	c, err := pods.take()
	if err != nil {
		b.Fatal(err)
	}
	defer pods.give(c)
	ph := phases{}
	must := func(err error) {
		if err != nil {
			b.Fatal(err)
		}
	}
	for range b.N {
		s := bareSpace(b)
		var host *link
		ph.time("1-veth", func() { host, err = pods.makeVeth(c, s.file, &p); must(err) })
		ph.time("2-host", func() { must(pods.setHost(c, host, &p)) })
		ph.time("3-inside", func() { must(pods.setInside(s.file, host.parent, &p)) })
		ph.time("4-carrier", func() { must(awaitCarrier(context.Background(), c, host)) })
		ph.time("5-remove", func() { must(c.do(delLink(host.index))) })
		s.file.Close()
	}
	ph.report(b)
}

func BenchmarkApply1000Peers(b *testing.B) {
	p := tunnelPlan(1000)
	for range b.N {
		b.StopTimer()
		_, d := newNode(b)
		b.StartTimer()
		apply(b, d, p)
	}
}

func BenchmarkApply1000PeersNothingToDo(b *testing.B) {
	_, d := newNode(b)
	p := tunnelPlan(1000)
	apply(b, d, p)
	b.ResetTimer()
	for range b.N {
		if n := apply(b, d, p); n != 0 {
			b.Fatal(n)
		}
	}
}

func BenchmarkApplyOnePeerMoreTo1000(b *testing.B) {
	_, d := newNode(b)
	p, q := tunnelPlan(1000), tunnelPlan(1001)
	apply(b, d, p)
	b.ResetTimer()
	for i := range b.N {
		apply(b, d, []*plan.Plan{q, p}[i%2])
	}
}

// BenchmarkApplyManyPods is a pass over a node with 100 routed pods.
func BenchmarkApplyManyPods(b *testing.B) {
	node, d := newNode(b)
	pods, full := newPods(b, node), &plan.Plan{}
	for i := 2; i < 102; i++ {
		attach(b, pods, newSpace(b), routed(i))
		planWith(full, routed(i))
	}
	b.ResetTimer()
	for range b.N {
		if n := apply(b, d, full); n != 0 {
			b.Fatal(fmt.Sprint(n, " objects changed"))
		}
	}
}
