package policy

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/internal/selector"
)

// The cluster that the benchmarks are about, and that docs/measurements.md names.
const (
	bigEndpoints  = 100_000
	bigPolicies   = 10_000
	bigNamespaces = 1_000
	bigLocals     = 100
	bigStep       = bigEndpoints/bigLocals + 1
)

func bigSpace(n int) string { return fmt.Sprintf("team-%04d", n) }

func bigEndpoint(i int, label string) (string, *Endpoint) {
	node := "node-" + fmt.Sprint(1+i%999)
	if i%bigStep == 0 {
		node = "a" // about bigLocals of them, each in another namespace
	}
	key := fmt.Sprintf("%s:veth%08x", node, i)
	return key, &Endpoint{
		Key: key, Node: node, Namespace: bigSpace((i * 7919) % bigNamespaces), Name: fmt.Sprintf("app-%d-%08x", i%10, i),
		Labels: map[string]string{"app": fmt.Sprintf("app-%d", i%10), "pod-template-hash": fmt.Sprintf("%x", i%20), "tier": label},
		Ports:  []NamedPort{{Name: "http", Protocol: 6, Port: uint16(8000 + i%3)}},
		Addresses: []netip.Addr{
			netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}),
			netip.AddrFrom16([16]byte{0xfd, 0, 12: 0, 13: byte(i >> 16), 14: byte(i >> 8), 15: byte(i)}),
		},
	}
}

// bigPolicy is one of ten per namespace, such as people write: by pod, by namespace, by net, by port, default deny.
func bigPolicy(i int) (string, *Policy) {
	ns := bigSpace(i % bigNamespaces)
	here := selector.Equal(LabelNamespace, ns)
	p := &Policy{
		Ref: Ref{"NetworkPolicy", ns, fmt.Sprintf("policy-%d", i)}, Tier: DefaultTier, Order: KubernetesOrder,
		Subject: selector.And(here, selector.Equal(LabelOrchestrator, Orchestrator), selector.Equal("app", fmt.Sprintf("app-%d", i/bigNamespaces))), AppliesIngress: true,
	}
	r := Rule{Action: Allow, Protocol: 6, NotProtocol: AnyProtocol}
	r.Dest.Ports = []Port{{First: uint16(1000 + i%7), Last: uint16(1000 + i%7)}, {First: 9000, Last: 9100}}
	s := selector.And(here, selector.Equal(LabelOrchestrator, Orchestrator), selector.Equal("app", fmt.Sprintf("app-%d", i%10)))
	switch i / bigNamespaces % 5 {
	case 0:
		p.Subject = selector.And(here, selector.Equal(LabelOrchestrator, Orchestrator))
		r.Source.Selector = &s
	case 1:
		s = selector.And(selector.Equal(LabelOrchestrator, Orchestrator), selector.Equal(PrefixNamespace+"team", fmt.Sprintf("t%d", i%100)))
		r.Source.Selector = &s
		r.Dest.Ports = []Port{{Name: "http"}}
	case 2:
		r.Source.Nets = nets(fmt.Sprintf("192.%d.%d.0/24", i%200, i%251))
		r.Source.NotNets = nets(fmt.Sprintf("192.%d.%d.16/28", i%200, i%251))
	case 3:
		r.Source.Selector = &s
		p.AppliesEgress = true
		e := r
		e.Source, e.Dest = Side{}, Side{Selector: &s, Ports: []Port{{Name: "http"}}}
		own := rule(Allow)
		own.Dest.OwnNode, own.Index = true, -1
		p.Egress = []Rule{e, own}
	}
	p.Ingress = []Rule{r}
	return fmt.Sprint("policy/", i), p
}

// processTime is what all threads used, the collector's included.
func processTime(b *testing.B) time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &t); err != nil {
		b.Fatal(err)
	}
	return time.Duration(t.Nano())
}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// bigFeed calls put with all objects.
func bigFeed(put func(string, Object)) {
	for i := range bigNamespaces {
		put(fmt.Sprint("ns/", i), &Namespace{bigSpace(i), map[string]string{"team": fmt.Sprintf("t%d", i%100), "env": fmt.Sprintf("e%d", i%3)}})
	}
	for i := range bigPolicies {
		key, p := bigPolicy(i)
		put(key, p)
	}
	for i := range bigEndpoints {
		key, e := bigEndpoint(i, "x")
		put(key, e)
	}
}

func bigCompiler() *Compiler {
	c := NewCompiler(Options{Node: "a"})
	c.SetNode([]netip.Addr{addr("172.16.0.1")})
	bigFeed(c.Put)
	return c
}

// BenchmarkInitialCompile tells how long it takes to feed objects that are there and to compile them, and
// what a compiler keeps when nobody else keeps the objects.
func BenchmarkInitialCompile(b *testing.B) {
	type told struct {
		key string
		of  Object
	}
	for b.Loop() {
		var all []told
		bigFeed(func(key string, o Object) { all = append(all, told{key, o}) })
		start, from := time.Now(), processTime(b)
		c := NewCompiler(Options{Node: "a"})
		c.SetNode([]netip.Addr{addr("172.16.0.1")})
		for _, o := range all {
			c.Put(o.key, o.of)
		}
		b.ReportMetric(time.Since(start).Seconds(), "s/feed")
		d := c.Compile()
		b.ReportMetric(time.Since(start).Seconds(), "s/all")
		b.ReportMetric((processTime(b) - from).Seconds(), "s-cpu/all")
		elements := len(d.Identities.Put) + len(d.Nets.Put) + len(d.Rows.Put) + len(d.L4.Put) + len(d.Locals.Put) + len(d.Base.Put)
		b.ReportMetric(float64(elements), "elements")
		runtime.KeepAlive(c)

		before := heap() // what came before is garbage by now
		c = bigCompiler()
		c.Compile()
		b.ReportMetric(float64(heap()-before)/(1<<20), "MiB")
		t := c.Table()
		b.Logf("ids %d nets %d rows %d l4 %d base %d locals %d; groups %d identities %d preds %d atoms %d classes %d programs %d",
			len(t.Identities), len(t.Nets), len(t.Rows), len(t.L4), len(t.Base), len(t.Locals), len(c.idents.groups), len(c.idents.by), len(c.preds.by), len(c.atoms.by), len(c.classes), len(c.programs))
	}
}

// changes measures a Compile per change and reports the median and the 99th percentile.
func changes(b *testing.B, change func(c *Compiler, n int)) {
	c := bigCompiler()
	c.Compile()
	// Processor time of this thread: other work on the machine does not count.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cpu := func() time.Duration {
		var t unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t); err != nil {
			b.Fatal(err)
		}
		return time.Duration(t.Nano())
	}
	var took, used []time.Duration
	elements := 0
	n := 0
	for b.Loop() {
		start, from := time.Now(), cpu()
		change(c, n)
		d := c.Compile()
		took = append(took, time.Since(start))
		used = append(used, cpu()-from)
		if d != nil {
			elements += len(d.Identities.Put) + len(d.Rows.Put) + len(d.L4.Put) + len(d.Identities.Del) + len(d.Rows.Del) + len(d.L4.Del)
		}
		n++
	}
	slices.Sort(took)
	slices.Sort(used)
	b.ReportMetric(float64(used[len(used)/2].Microseconds()), "µs-cpu-median")
	b.ReportMetric(float64(used[len(used)*99/100].Microseconds()), "µs-cpu-p99")
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "µs-median")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "µs-p99")
	b.ReportMetric(float64(elements)/float64(n), "elements/op")
}

func BenchmarkPolicyPut(b *testing.B) {
	changes(b, func(c *Compiler, n int) {
		key, p := bigPolicy(n * 7 % bigPolicies)
		q := *p
		q.Ingress = slices.Clone(p.Ingress)
		q.Ingress[0].Dest.Ports = ports(uint16(n))
		c.Put(key, &q)
	})
}

// Of a namespace in which a local workload is: every put and delete changes the table.
func BenchmarkPolicyPutDeleteHere(b *testing.B) {
	changes(b, func(c *Compiler, n int) {
		_, e := bigEndpoint(n/2%bigLocals*bigStep, "x")
		ns := e.Namespace
		s := selector.And(selector.Equal(LabelNamespace, ns), selector.Equal(LabelOrchestrator, Orchestrator))
		from := selector.And(selector.Equal(LabelOrchestrator, Orchestrator), selector.Equal(PrefixNamespace+"team", "t7"), selector.Equal("app", fmt.Sprint("app-", n/2%10)))
		r := rule(Allow)
		r.Source.Selector = &from
		if n%2 == 0 {
			c.Put("extra", &Policy{Ref: Ref{"NetworkPolicy", ns, "extra"}, Tier: DefaultTier, Order: 1, Subject: s, AppliesIngress: true, Ingress: []Rule{r}})
		} else {
			c.Delete("extra")
		}
	})
}

func BenchmarkPolicyPutDeleteNets(b *testing.B) {
	changes(b, func(c *Compiler, n int) {
		_, e := bigEndpoint(n/2%bigLocals*bigStep, "x")
		s := selector.And(selector.Equal(LabelNamespace, e.Namespace), selector.Equal(LabelOrchestrator, Orchestrator))
		r := rule(Allow)
		r.Source.Nets = nets("0.0.0.0/0")
		r.Source.NotNets = nets("10.0.0.0/8")
		if n%2 == 0 {
			c.Put("extra", &Policy{Ref: Ref{"NetworkPolicy", e.Namespace, "extra"}, Tier: DefaultTier, Order: 1, Subject: s, AppliesIngress: true, Ingress: []Rule{r}})
		} else {
			c.Delete("extra")
		}
	})
}

// A policy of all workloads, from all workloads of half of the cluster.
func BenchmarkGlobalPolicyPutDelete(b *testing.B) {
	changes(b, func(c *Compiler, n int) {
		from := selector.Equal(PrefixNamespace+"env", fmt.Sprint("e", n/2%3))
		r := rule(Allow)
		r.Source.Selector = &from
		if n%2 == 0 {
			c.Put("extra", &Policy{Ref: Ref{"GlobalNetworkPolicy", "", "extra"}, Tier: DefaultTier, Order: 1, Subject: selector.All(), AppliesIngress: true, Ingress: []Rule{r}})
		} else {
			c.Delete("extra")
		}
	})
}

func BenchmarkLabelChange(b *testing.B) {
	r := rand.New(rand.NewPCG(1, 2))
	changes(b, func(c *Compiler, n int) {
		i := r.IntN(bigEndpoints)
		if n%10 == 0 {
			i = i / bigStep * bigStep // a local one
		}
		key, e := bigEndpoint(i, fmt.Sprint("y", n))
		e.Labels["app"] = fmt.Sprint("app-", n%10)
		c.Put(key, e)
	})
}

func BenchmarkNamespaceLabelChange(b *testing.B) {
	changes(b, func(c *Compiler, n int) {
		i := n * 31 % bigNamespaces
		c.Put(fmt.Sprint("ns/", i), &Namespace{bigSpace(i), map[string]string{"team": fmt.Sprintf("t%d", n%100), "env": "e1"}})
	})
}

func BenchmarkDecide(b *testing.B) {
	c := bigCompiler()
	c.Compile()
	t := c.Table()
	_, e := bigEndpoint(0, "x")
	n := 0
	for b.Loop() {
		_, f := bigEndpoint(n%1000, "x")
		t.Decide(Local{Hook: WorkloadIngress, Addr: e.Addresses[0]}, f.Addresses[0], 6, 1000, 9001)
		n++
	}
}
