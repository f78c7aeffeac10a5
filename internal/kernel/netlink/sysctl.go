package netlink

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/heddle-net/heddle/internal/plan"
)

const sysctlRoot = "/proc/sys/"

// readSysctl reads a setting of the calling thread's network namespace, without its line end.
func readSysctl(key string) (string, error) {
	b, err := os.ReadFile(sysctlRoot + key)
	return strings.TrimSpace(string(b)), err
}

// writeSysctl writes without creating or truncating, which the kernel's files take amiss.
func writeSysctl(key, value string) error {
	f, err := os.OpenFile(sysctlRoot+key, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

// sameSysctl compares values; the kernel parts several numbers with tabs.
func sameSysctl(a, b string) bool {
	return a == b || strings.Join(strings.Fields(a), " ") == strings.Join(strings.Fields(b), " ")
}

// applySysctls writes what differs. Settings of a link that is not usable are left out: the link's
// own problem says it.
func (r *round) applySysctls() {
	if len(r.p.Sysctls) == 0 {
		return
	}
	err := Do(r.d.ns, func() error {
		for _, s := range r.p.Sysctls {
			if !r.sysctlApplies(s.Key) {
				continue
			}
			have, err := readSysctl(s.Key)
			if err == nil && sameSysctl(have, s.Value) {
				continue
			}
			next := "sysctl -w " + s.Key + "=" + s.Value
			if err == nil {
				err = writeSysctl(s.Key, s.Value)
			}
			if err != nil {
				r.fail("sysctl-failed", "sysctl "+s.Key, fmt.Errorf("want %s: %w", s.Value, bare(err)), next)
				continue
			}
			r.changed++
			r.done = append(r.done, op{subject: "sysctl " + s.Key, next: next})
		}
		return nil
	})
	if err != nil {
		r.fail("sysctl-failed", "sysctls", err, "")
	}
}

// bare is the kernel's reason without the file's name, which the subject says.
func bare(err error) error {
	var pe *os.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

func (r *round) sysctlApplies(key string) bool {
	parts := strings.Split(key, "/")
	if len(parts) != 5 || parts[2] != "conf" && parts[2] != "neigh" {
		return true
	}
	for i := range r.p.Links {
		if r.p.Links[i].Name == parts[3] {
			return r.usable[parts[3]] != nil
		}
	}
	return true
}

// writeSysctls sets the settings of a new link in the calling thread's namespace.
func writeSysctls(ss []plan.Sysctl) error {
	for _, s := range ss {
		if err := writeSysctl(s.Key, s.Value); err != nil {
			return fmt.Errorf("sysctl %s=%s: %w", s.Key, s.Value, bare(err))
		}
	}
	return nil
}
