package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containernetworking/cni/libcni"
	types "github.com/containernetworking/cni/pkg/types/100"
	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/test/bench/space"
)

// chain is a list of plugins, called as a container runtime calls them: by libcni.
type chain struct {
	name  string
	list  *libcni.NetworkConfigList
	cni   *libcni.CNIConfig
	node  *space.Space // where the plugins run; nil for the namespace of this process
	agent int          // process whose CPU time belongs to the calls; 0 for none
}

// reference is the chain that the CNI project ships: bridge and host-local, with or without portmap.
func reference(dir, plugins string, portmap bool) (*chain, error) {
	name := "reference"
	list := map[string]any{"cniVersion": "1.0.0", "name": "bench"}
	members := []any{map[string]any{
		"type": "bridge", "bridge": "cni0", "isDefaultGateway": true, "hairpinMode": true, "mtu": 1500,
		"ipam": map[string]any{
			"type": "host-local", "dataDir": filepath.Join(dir, "ipam"),
			"ranges": []any{[]any{map[string]any{"subnet": "10.244.0.0/20"}}},
		},
	}}
	if portmap {
		name += "+portmap"
		members = append(members, map[string]any{"type": "portmap", "capabilities": map[string]any{"portMappings": true}})
	}
	list["plugins"] = members
	b, err := json.Marshal(list)
	if err != nil {
		return nil, err
	}
	node, err := space.New()
	if err != nil {
		return nil, err
	}
	c, err := newChain(name, b, plugins, dir)
	if err != nil {
		return nil, err
	}
	c.node = node
	return c, nil
}

func newChain(name string, conflist []byte, plugins, dir string) (*chain, error) {
	list, err := libcni.ConfListFromBytes(conflist)
	if err != nil {
		return nil, fmt.Errorf("%s: conflist: %w", name, err)
	}
	return &chain{
		name: name, list: list,
		cni: libcni.NewCNIConfigWithCacheDir([]string{plugins}, filepath.Join(dir, "cache", name), nil),
	}, nil
}

func (c *chain) close() {
	if c.node != nil {
		c.node.Close()
	}
}

// batch is n ADDs and then n DELs, some at a time.
type batch struct {
	Chain   string `json:"chain"`
	Round   int    `json:"round"`
	AtATime int    `json:"atATime"`
	N       int    `json:"n"`
	Add     phase  `json:"add"`
	Del     phase  `json:"del"`
}

// phase is one of the two verbs.
type phase struct {
	Calls []time.Duration `json:"calls"` // each call, nanoseconds
	Wall  time.Duration   `json:"wall"`  // all of them
	CPU   time.Duration   `json:"cpu"`   // of the plugins and the agent, all calls
}

var ids atomic.Int64

// run does one batch. Namespaces are made before, as a runtime does, and are not counted.
func (c *chain) run(ctx context.Context, round, n, atATime int) (batch, error) {
	return c.paced(ctx, round, n, atATime, 0)
}

// paced does a batch in which an ADD begins every so often; those before it may still be under way.
func (c *chain) paced(ctx context.Context, round, n, atATime int, every time.Duration) (batch, error) {
	b := batch{Chain: c.name, Round: round, AtATime: atATime, N: n}
	pods := make([]*libcni.RuntimeConf, n)
	for i := range pods {
		s, err := space.New()
		if err != nil {
			return b, err
		}
		defer s.Close()
		pods[i] = &libcni.RuntimeConf{
			ContainerID: fmt.Sprintf("bench-%d-%d", os.Getpid(), ids.Add(1)), IfName: "eth0",
			NetNS: fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), s.File().Fd()),
		}
	}
	var err error
	b.Add, err = c.phase(pods, atATime, every, func(p *libcni.RuntimeConf) error {
		r, err := c.cni.AddNetworkList(ctx, c.list, p)
		if err != nil {
			return err
		}
		got, err := types.NewResultFromResult(r)
		if err == nil && len(got.IPs) == 0 {
			err = fmt.Errorf("ADD gave no address: %+v", got)
		}
		return err
	})
	if err != nil {
		for _, p := range pods { // leave nothing behind with an agent that lives on
			_ = c.cni.DelNetworkList(ctx, c.list, p)
		}
		return b, fmt.Errorf("%s: ADD: %w", c.name, err)
	}
	b.Del, err = c.phase(pods, atATime, 0, func(p *libcni.RuntimeConf) error { return c.cni.DelNetworkList(ctx, c.list, p) })
	if err != nil {
		return b, fmt.Errorf("%s: DEL: %w", c.name, err)
	}
	return b, nil
}

func (c *chain) phase(pods []*libcni.RuntimeConf, atATime int, every time.Duration, call func(*libcni.RuntimeConf) error) (phase, error) {
	p := phase{Calls: make([]time.Duration, len(pods))}
	var next atomic.Int64
	var wait sync.WaitGroup
	errs := make([]error, atATime)
	begin, cpu := time.Now(), c.cpu()
	for w := range atATime {
		wait.Go(func() {
			work := func() error {
				for {
					i := int(next.Add(1)) - 1
					if i >= len(pods) {
						return nil
					}
					if every > 0 {
						time.Sleep(time.Until(begin.Add(time.Duration(i) * every)))
					}
					t := time.Now()
					if err := call(pods[i]); err != nil {
						return err
					}
					p.Calls[i] = time.Since(t)
				}
			}
			if c.node == nil {
				errs[w] = work()
			} else {
				errs[w] = c.node.Do(work) // plugins run where the thread is that starts them
			}
		})
	}
	wait.Wait()
	p.Wall, p.CPU = time.Since(begin), c.cpu()-cpu
	for _, err := range errs {
		if err != nil {
			return p, err
		}
	}
	return p, nil
}

// cpu is the time used by the children of this process that have ended, and by the agent.
func (c *chain) cpu() time.Duration {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_CHILDREN, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano()+u.Stime.Nano()) + processTime(c.agent)
}

// processTime is the CPU time of a process, to 10 ms.
func processTime(pid int) time.Duration {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if pid == 0 || err != nil {
		return 0
	}
	f := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:]) // the name before may hold anything
	if len(f) < 13 {
		return 0
	}
	var sum time.Duration
	for _, w := range f[11:13] { // utime and stime, in USER_HZ
		n, _ := strconv.ParseInt(string(w), 10, 64)
		sum += time.Duration(n) * 10 * time.Millisecond
	}
	return sum
}
