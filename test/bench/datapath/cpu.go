package datapath

import (
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// clock is the machine's use of CPU up to a moment.
type clock struct {
	at      time.Time
	busy    time.Duration // all CPUs, also what a hypervisor took away
	softirq time.Duration // of that, in interrupts
	threads time.Duration // ksoftirqd: packets that are worked on apart from their sender
}

// tick is the unit of /proc/stat, USER_HZ; every Linux architecture in use has 100.
const tick = 10 * time.Millisecond

func readClock() (clock, error) {
	c := clock{at: time.Now()}
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return c, err
	}
	line, _, _ := strings.Cut(string(b), "\n")
	for i, f := range strings.Fields(line)[1:] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return c, err
		}
		d := time.Duration(n) * tick
		switch i {
		case 0, 1, 2, 7: // user, nice, system, steal
			c.busy += d
		case 5, 6: // irq, softirq
			c.busy += d
			c.softirq += d
		}
	}
	for _, file := range softirqThreads {
		if b, err := os.ReadFile(file); err == nil {
			ns, _, _ := strings.Cut(string(b), " ")
			if n, err := strconv.ParseInt(ns, 10, 64); err == nil {
				c.threads += time.Duration(n)
			}
		}
	}
	return c, nil
}

// softirqThreads are the schedstat files of ksoftirqd, one for each CPU.
var softirqThreads = func() (out []string) {
	files, _ := filepath.Glob("/proc/[0-9]*/comm")
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil && strings.HasPrefix(string(b), "ksoftirqd/") {
			out = append(out, filepath.Join(filepath.Dir(f), "schedstat"))
		}
	}
	return out
}()

// irqTimeApart tells whether the kernel takes the time of interrupts out of the time of the process that
// they interrupt (CONFIG_IRQ_TIME_ACCOUNTING). Where it does not, a sender's time has its packets in it.
var irqTimeApart = func() bool {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return false
	}
	b, err := os.ReadFile("/boot/config-" + unix.ByteSliceToString(u.Release[:]))
	return err == nil && regexp.MustCompile(`(?m)^CONFIG_IRQ_TIME_ACCOUNTING=y`).Match(b)
}()

// spent is the CPU time of a test and of everybody else meanwhile.
func spent(before, after clock, load time.Duration) (own, others, elapsed time.Duration) {
	elapsed = after.at.Sub(before.at)
	own = load + after.threads - before.threads
	if irqTimeApart {
		own = load + after.softirq - before.softirq // which has ksoftirqd's in it
	}
	return own, max(0, after.busy-before.busy-own), elapsed
}
