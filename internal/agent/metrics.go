package agent

import (
	"log/slog"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

type metrics struct {
	registry *prometheus.Registry
	passes   prometheus.Histogram
	changes  prometheus.Counter
	requests *prometheus.HistogramVec
	phases   *prometheus.HistogramVec
}

// requestBuckets are in seconds: powers of two, and the 100 ms that an ADD is to stay below.
var requestBuckets = []float64{0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.1, 0.128, 0.256, 0.512, 1.024}

func newMetrics(a *Agent) *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		passes: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "heddle_pass_seconds", Help: "Duration of a pass: snapshot, build, apply.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 12),
		}),
		changes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "heddle_kernel_changes_total", Help: "Kernel objects that passes made, changed or removed.",
		}),
		requests: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "heddle_cni_request_seconds", Help: "Duration of CNI requests inside the agent, by command and CNI error code (0: success).",
			Buckets: requestBuckets,
		}, []string{"command", "code"}),
		phases: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "heddle_cni_add_phase_seconds", Help: "Duration of the parts of an ADD inside the agent: known, locked, reserved, admitted, attached, opened.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 12),
		}, []string{"phase"}),
	}
	m.registry.MustRegister(m.passes, m.changes, m.requests, m.phases, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	gauge := func(name, help string, f func(*state) float64) {
		m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 {
			s := a.snapshot()
			return f(&s)
		}))
	}
	gauge("heddle_ready", "1 when pods can be added.", func(s *state) float64 { return truth(s.ready == nil) })
	gauge("heddle_store_connected", "1 while the store answers.", func(s *state) float64 { return truth(s.synced && s.storeErr == nil) })
	gauge("heddle_workloads", "Workloads on this node.", func(*state) float64 { return float64(len(a.ledger.List())) })
	gauge("heddle_problems", "Problems that status would list from the loops.", func(s *state) float64 {
		return float64(len(s.passIssues) + len(s.storeIssues) + len(s.netConf) + len(s.certificate) + len(s.bgpIssues))
	})
	if a.Config.Store.Cert != "" {
		gauge("heddle_certificate_expiry_seconds", "When the certificate for the store ends, Unix time; 0 when it cannot be read.", func(s *state) float64 {
			if s.certificateEnd.IsZero() {
				return 0
			}
			return float64(s.certificateEnd.Unix())
		})
	}
	m.registry.MustRegister(&peerCollector{a: a, desc: prometheus.NewDesc("heddle_peers", "Remote blocks by path and state.", []string{"path", "state"}, nil)})
	m.registry.MustRegister(newBGPCollector(a))
	return m
}

func (m *metrics) pass(d time.Duration, changed int) {
	m.passes.Observe(d.Seconds())
	m.changes.Add(float64(changed))
}

// request is a CNI server's observer.
func (m *metrics) request(command string, code uint, took time.Duration) {
	m.requests.WithLabelValues(command, strconv.FormatUint(uint64(code), 10)).Observe(took.Seconds())
}

// stopwatch tells how long each part of an ADD takes.
type stopwatch struct {
	m     *metrics
	begun time.Time
	laps  []any // for the log
}

func (m *metrics) start() stopwatch { return stopwatch{m: m, begun: time.Now()} }

// lap ends a part, and begins the next.
func (s *stopwatch) lap(phase string) {
	now := time.Now()
	s.m.phases.WithLabelValues(phase).Observe(now.Sub(s.begun).Seconds())
	s.laps = append(s.laps, slog.Duration(phase, now.Sub(s.begun)))
	s.begun = now
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// peerCollector counts peers when asked, so that no series outlives its peer.
type peerCollector struct {
	a    *Agent
	desc *prometheus.Desc
}

func (c *peerCollector) Describe(ch chan<- *prometheus.Desc) { ch <- c.desc }

func (c *peerCollector) Collect(ch chan<- prometheus.Metric) {
	s := c.a.snapshot()
	if s.plan == nil {
		return
	}
	counts := map[[2]string]int{}
	for _, p := range peerStates(&s) {
		counts[[2]string{string(p.Path), string(p.State)}]++
	}
	for k, n := range counts {
		ch <- prometheus.MustNewConstMetric(c.desc, prometheus.GaugeValue, float64(n), k[0], k[1])
	}
}
