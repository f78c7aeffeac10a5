package cni

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/heddle-net/heddle/test/bench/space"
)

// node is one Heddle node with its store, as `make demo` runs them, in a namespace of its own.
type node struct {
	space, far *space.Space
	started    []*exec.Cmd
	conflist   string
	agentPID   int
}

// The blocks are large, so that addresses that rest after a DEL do not bring the run to a halt.
const benchNetConf = `{"Network":"10.244.0.0/16","SubnetLen":20,"Backend":{"Type":"vxlan"}}`

// startNode starts store and agent from the folder of the binaries and waits until pods can be added.
func startNode(ctx context.Context, bin, dir string) (n *node, err error) {
	n = &node{conflist: filepath.Join(dir, "net.d", "05-heddle.conflist")}
	defer func() {
		if err != nil {
			n.close()
		}
	}()
	if n.space, err = space.New(); err != nil {
		return n, err
	}
	if n.far, err = space.New(); err != nil {
		return n, err
	}
	if err := space.Veth(n.space, "eth0", n.far, "eth0"); err != nil {
		return n, err
	}
	if err := n.far.IP("link", "set", "eth0", "up"); err != nil {
		return n, err
	}
	if err := n.space.Lines("addr add 192.168.0.4/24 dev eth0\nlink set eth0 up\n"); err != nil {
		return n, err
	}
	conf := filepath.Join(dir, "net-conf.json")
	if err := os.WriteFile(conf, []byte(benchNetConf), 0o600); err != nil {
		return n, err
	}
	heddle := filepath.Join(bin, "heddle")
	socket := "unix://" + filepath.Join(dir, "store.sock")
	if _, err := n.start(dir, heddle, "store", "--data-dir", filepath.Join(dir, "store"), "--listen", socket); err != nil {
		return n, err
	}
	n.agentPID, err = n.start(dir, heddle, "agent", "--node", "bench", "--endpoints", socket, "--net-conf", conf,
		"--state-dir", filepath.Join(dir, "state"), "--run-dir", filepath.Join(dir, "run"), "--cni-conf-dir", filepath.Dir(n.conflist))
	if err != nil {
		return n, err
	}
	return n, waitFor(ctx, n.conflist)
}

func (n *node) start(dir string, argv ...string) (pid int, err error) {
	log, err := os.Create(filepath.Join(dir, argv[1]+".log"))
	if err != nil {
		return 0, err
	}
	defer func() { _ = log.Close() }()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stderr = log
	if err := n.space.Start(cmd, -1); err != nil {
		return 0, err
	}
	n.started = append(n.started, cmd)
	return cmd.Process.Pid, nil
}

// waitFor waits for a file to be there.
func waitFor(ctx context.Context, file string) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		_, err := os.Stat(file)
		if !errors.Is(err, os.ErrNotExist) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the agent has not written %s: %w", file, ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (n *node) close() {
	for _, c := range n.started {
		_ = c.Process.Kill()
		_ = c.Wait()
	}
	for _, s := range []*space.Space{n.space, n.far} {
		if s != nil {
			s.Close()
		}
	}
}
