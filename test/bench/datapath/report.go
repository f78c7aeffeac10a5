package datapath

import (
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
)

// ratios are a network's figures by those of the floor in the same round.
func (r *Report) ratios(network, test string, of func(sample) float64) []float64 {
	floor := map[int]float64{}
	for _, s := range r.Samples {
		if s.Network == r.floor && s.Test == test {
			floor[s.Round] = of(s)
		}
	}
	var out []float64
	for _, s := range r.Samples {
		if s.Network == network && s.Test == test && floor[s.Round] > 0 {
			out = append(out, of(s)/floor[s.Round])
		}
	}
	return out
}

func (r *Report) median(network, test string, of func(sample) float64) float64 {
	var out []float64
	for _, s := range r.Samples {
		if s.Network == network && s.Test == test {
			out = append(out, of(s))
		}
	}
	m, _, _ := spread(out)
	return m
}

func spread(v []float64) (median, least, most float64) {
	if len(v) == 0 {
		return 0, 0, 0
	}
	v = slices.Sorted(slices.Values(v))
	median = v[len(v)/2]
	if len(v)%2 == 0 {
		median = (v[len(v)/2-1] + v[len(v)/2]) / 2
	}
	return median, v[0], v[len(v)-1]
}

func value(s sample) float64 { return s.Value }
func cost(s sample) float64  { return s.Cost }

func (r *Report) print(out io.Writer, title string, nets []*network, run []test) {
	table := func(title string, of func(sample) float64, unit func(test) string) {
		_, _ = fmt.Fprintf(out, "\n%s\n\n", title)
		w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
		_, _ = fmt.Fprint(w, "network")
		for _, t := range run {
			_, _ = fmt.Fprintf(w, "\t%s", t.name)
		}
		for _, n := range nets {
			_, _ = fmt.Fprintf(w, "\n%s", n.name)
			for _, t := range run {
				m, lo, hi := spread(r.ratios(n.name, t.name, of))
				_, _ = fmt.Fprintf(w, "\t%.2f (%.2f..%.2f)", m, lo, hi)
			}
		}
		_, _ = fmt.Fprintf(w, "\n%s itself", r.floor)
		for _, t := range run {
			_, _ = fmt.Fprintf(w, "\t%.4g %s", r.median(r.floor, t.name, of), unit(t))
		}
		_, _ = fmt.Fprintln(w)
		_ = w.Flush()
	}
	_, _ = fmt.Fprintf(out, title, r.Kernel, r.Rounds)
	table("Speed", value, func(t test) string { return t.unit })
	table("CPU time for the same work (less is better)", cost, func(t test) string { return t.costUnit })
	_, _ = fmt.Fprintf(out, "\n%d of %d samples stayed noisy: others used more than %.0f %% of a CPU meanwhile.\n\n", r.Noisy, len(r.Samples), noisy*100)
	for _, n := range nets {
		_, _ = fmt.Fprintf(out, "%-16s %s\n", n.name, n.about)
	}
}
