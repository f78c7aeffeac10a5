package lab

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"text/tabwriter"
)

// Survey is a lab at one moment, for people.
type Survey struct {
	Lab      string          `json:"lab"`
	Topology string          `json:"topology"`
	NetConf  string          `json:"netConf"`
	Machines []MachineSurvey `json:"machines"`
	Pods     []Pod           `json:"pods"`
}

// MachineSurvey is one machine: its processes by the host's numbers, 0 for one that does not run.
type MachineSurvey struct {
	Name      string       `json:"name"`
	Segment   string       `json:"segment,omitempty"`
	Addresses []netip.Addr `json:"addresses,omitempty"`
	Node      bool         `json:"node"`
	Init      int          `json:"init"`
	Agent     int          `json:"agent,omitempty"`
	Store     int          `json:"store,omitempty"`
	State     string       `json:"state"` // "ready", "running" or what is wrong
	Blocks    []string     `json:"blocks,omitempty"`
}

// Running finds the machines that run: name → process id of the init, on the host.
func (l *Lab) Running() (map[string]int, error) { return inits(l.Dir) }

// Survey looks at every machine and pod.
func (l *Lab) Survey(ctx context.Context) (*Survey, error) {
	running, err := l.Running()
	if err != nil {
		return nil, err
	}
	s := &Survey{Lab: l.Name, Topology: l.Spec.Topology.Name, NetConf: strings.TrimSpace(l.Spec.NetConf), Pods: []Pod{}}
	for _, h := range l.Spec.Topology.machines() {
		m := MachineSurvey{Name: h.Name, Segment: h.Segment, Addresses: h.Addresses, Init: running[h.Name]}
		m.Node = l.Spec.Topology.node(h.Name) != nil
		l.surveyState(ctx, &m)
		s.Machines = append(s.Machines, m)
	}
	router := MachineSurvey{Name: routerName, Init: running[routerName]}
	l.surveyState(ctx, &router)
	s.Machines = append(s.Machines, router)
	if pods, err := l.Pods(); err == nil {
		s.Pods = append(s.Pods, pods...)
	}
	return s, nil
}

func (l *Lab) surveyState(ctx context.Context, m *MachineSurvey) {
	m.State = "running"
	if m.Init == 0 {
		m.State = "gone"
		return
	}
	if !m.Node || l.Spec.Bare {
		return
	}
	m.Agent, m.Store = serviceOf(m.Init, "agent"), serviceOf(m.Init, "store")
	st, err := l.Status(ctx, m.Name)
	switch {
	case err != nil:
		m.State = err.Error()
	case !st.Ready:
		m.State = "not ready: " + st.Reason
	default:
		m.State = "ready"
		if n := len(st.Problems); n > 0 {
			m.State = fmt.Sprintf("ready, %d problems: %s", n, st.Problems[0])
		}
	}
	for _, b := range st.Blocks {
		m.Blocks = append(m.Blocks, b.CIDR.String())
	}
}

// Print writes the survey as two tables.
func (s *Survey) Print(out io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "lab %s, topology %s, %s\n\n", s.Lab, s.Topology, s.NetConf)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	b.WriteString("MACHINE\tSEGMENT\tADDRESSES\tINIT\tAGENT\tSTORE\tBLOCKS\tSTATE\n")
	for _, m := range s.Machines {
		fmt.Fprintf(&b, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", m.Name, dash(m.Segment), dash(joinAddrs(m.Addresses)),
			number(m.Init), number(m.Agent), number(m.Store), dash(strings.Join(m.Blocks, ",")), m.State)
	}
	if len(s.Pods) > 0 {
		b.WriteString("\nPOD\tADDRESSES\tCONTAINER\n")
		for _, p := range s.Pods {
			fmt.Fprintf(&b, "%s/%s\t%s\t%.13s\n", p.Node, p.Name, joinAddrs(p.Addresses), p.ContainerID)
		}
	}
	if _, err := io.WriteString(w, b.String()); err != nil {
		return err
	}
	return w.Flush()
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func number(n int) string {
	if n == 0 {
		return "-"
	}
	return fmt.Sprint(n)
}
