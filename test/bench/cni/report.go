package cni

import (
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"
)

func (r *Report) of(chain string, atATime int) (out []batch) {
	for _, b := range r.Batches {
		if b.Chain == chain && b.AtATime == atATime {
			out = append(out, b)
		}
	}
	return out
}

func add(b batch) phase { return b.Add }
func del(b batch) phase { return b.Del }

// figures are a phase's median and 90 % call, its mean CPU time per call over all turns (an agent's time
// comes in steps of 10 ms, too coarse for one turn), and its calls per second by turn.
func figures(batches []batch, of func(batch) phase) (median, most, cpu time.Duration, rates []float64) {
	var calls []time.Duration
	for _, b := range batches {
		calls = append(calls, of(b).Calls...)
		cpu += of(b).CPU
		rates = append(rates, float64(b.N)/of(b).Wall.Seconds())
	}
	if len(calls) > 0 {
		cpu /= time.Duration(len(calls))
	}
	return quantile(calls, 0.5), quantile(calls, 0.9), cpu, rates
}

func spread(v []float64) string {
	if len(v) == 0 {
		return "-"
	}
	v = slices.Sorted(slices.Values(v))
	return fmt.Sprintf("%.3g (%.3g..%.3g)", v[len(v)/2], v[0], v[len(v)-1])
}

func (r *Report) print(out io.Writer, chains []*chain, o Options) {
	ms := func(d time.Duration) string { return fmt.Sprintf("%.2f", d.Seconds()*1e3) }
	p := func(format string, args ...any) { _, _ = fmt.Fprintf(out, format, args...) }
	for _, atATime := range []int{1, o.AtATime} {
		p("\n%d at a time, %d turns of %d calls: median, 9 of 10 below, CPU per call (plugins and agent), calls per second (least..most)\n\n",
			atATime, o.Rounds, o.Calls)
		w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
		_, _ = fmt.Fprintln(w, "chain\tADD ms\t90 %\tCPU ms\tADD/s\tDEL ms\t90 %\tCPU ms\tDEL/s")
		for _, c := range chains {
			_, _ = fmt.Fprint(w, c.name)
			for _, of := range []func(batch) phase{add, del} {
				median, most, cpu, rates := figures(r.of(c.name, atATime), of)
				_, _ = fmt.Fprintf(w, "\t%s\t%s\t%s\t%s", ms(median), ms(most), ms(cpu), spread(rates))
			}
			_, _ = fmt.Fprintln(w)
		}
		_ = w.Flush()
	}
	r.compare(out, chains, o)
	p("\nA node filled with %d pods, %d ADDs a second: median, 9 of 10, 99 of 100 below, longest\n\n", fillPods, fillRate)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, b := range r.Filled {
		v := b.Add.Calls
		_, _ = fmt.Fprintf(w, "%s\t%s ms\t%s ms\t%s ms\t%s ms\n", b.Chain, ms(quantile(v, 0.5)), ms(quantile(v, 0.9)), ms(quantile(v, 0.99)), ms(quantile(v, 1)))
	}
	_ = w.Flush()
	p("\nThe kernel alone, one at a time: median, CPU of the caller\n\n")
	w = tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, s := range r.Kernel {
		_, _ = fmt.Fprintf(w, "%s\t%s ms\t%s ms\n", s.Name, ms(s.Wall), ms(s.CPU))
	}
	_ = w.Flush()
}

// compare prints the last chain's figures by those of the others: ratios within a turn.
func (r *Report) compare(out io.Writer, chains []*chain, o Options) {
	own := chains[len(chains)-1].name
	for _, c := range chains[:len(chains)-1] {
		_, _, ownCPU, _ := figures(r.of(own, 1), add)
		_, _, cpu, _ := figures(r.of(c.name, 1), add)
		_, _, _, ownRates := figures(r.of(own, o.AtATime), add)
		_, _, _, rates := figures(r.of(c.name, o.AtATime), add)
		var by []float64
		for i := range min(len(rates), len(ownRates)) {
			by = append(by, ownRates[i]/rates[i])
		}
		_, _ = fmt.Fprintf(out, "\n%s by %s: CPU per ADD %.2f; ADDs per second, %d at a time, %s\n",
			own, c.name, ownCPU.Seconds()/cpu.Seconds(), o.AtATime, spread(by))
	}
}
