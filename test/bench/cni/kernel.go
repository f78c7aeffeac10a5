package cni

import (
	"fmt"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/test/bench/space"
)

// step is what the kernel itself takes for one part of an ADD or DEL, by bare system calls.
type step struct {
	Name string        `json:"name"`
	Wall time.Duration `json:"wall"` // median, nanoseconds
	CPU  time.Duration `json:"cpu"`  // mean, of the calling thread; what the kernel does later is not in it
}

// kernelSteps measures n times each: nobody's ADD can be faster than their sum.
func kernelSteps(n int) ([]step, error) {
	node, err := space.New()
	if err != nil {
		return nil, err
	}
	defer node.Close()
	if err := node.Lines("link add cni0 type bridge\nlink set cni0 up"); err != nil {
		return nil, err
	}
	names := []string{
		"namespace made", "veth made, both ends on the node", "end moved into the namespace",
		"host end on the bridge and up", "veth made with its end in place", "veth deleted",
	}
	walls, cpus := make([][]time.Duration, len(names)), make([]time.Duration, len(names))
	for i := range n {
		timed := func(k int, f func() error) error {
			var a, b unix.Rusage
			_ = unix.Getrusage(unix.RUSAGE_THREAD, &a)
			t := time.Now()
			err := f()
			walls[k] = append(walls[k], time.Since(t))
			_ = unix.Getrusage(unix.RUSAGE_THREAD, &b)
			cpus[k] += time.Duration(b.Utime.Nano() + b.Stime.Nano() - a.Utime.Nano() - a.Stime.Nano())
			if err != nil {
				return fmt.Errorf("%s: %w", names[k], err)
			}
			return nil
		}
		pod, err := space.New()
		if err != nil {
			return nil, err
		}
		// A thread of its own, because it cannot come back from a namespace that is gone.
		if err := node.Do(func() error { return timed(0, func() error { return unix.Unshare(unix.CLONE_NEWNET) }) }); err != nil {
			return nil, err
		}
		err = node.Do(func() error {
			name, peer := fmt.Sprintf("v%d", i), fmt.Sprintf("p%d", i)
			attrs := netlink.NewLinkAttrs()
			attrs.Name = name
			bridge, err := netlink.LinkByName("cni0")
			if err != nil {
				return err
			}
			if err := timed(1, func() error { return netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: peer}) }); err != nil {
				return err
			}
			end, err := netlink.LinkByName(peer)
			if err != nil {
				return err
			}
			if err := timed(2, func() error { return netlink.LinkSetNsFd(end, int(pod.File().Fd())) }); err != nil {
				return err
			}
			host, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			if err := timed(3, func() error {
				if err := netlink.LinkSetMaster(host, bridge); err != nil {
					return err
				}
				return netlink.LinkSetUp(host)
			}); err != nil {
				return err
			}
			if err := timed(5, func() error { return netlink.LinkDel(host) }); err != nil {
				return err
			}
			if err := timed(4, func() error {
				return netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(pod.File().Fd())})
			}); err != nil {
				return err
			}
			return netlink.LinkDel(&netlink.Veth{LinkAttrs: attrs})
		})
		pod.Close()
		if err != nil {
			return nil, err
		}
	}
	out := make([]step, len(names))
	for k := range names {
		out[k] = step{names[k], quantile(walls[k], 0.5), cpus[k] / time.Duration(n)}
	}
	return out, nil
}
