package agent

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/heddle-net/heddle/internal/dialect/calico"
	"github.com/heddle-net/heddle/internal/ipam"
	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/peering"
)

// written is what people wrote about the network in Calico's words, translated once per change. What is spoilt
// counts as it was before.
type written struct {
	mu       sync.Mutex
	settings []model.Setting
	reader   calico.Reader
	net      calico.Net
	problems []model.Problem
}

func (w *written) read(settings []model.Setting) (calico.Net, []model.Problem) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.net.Nodes == nil || !sameList(settings, w.settings) {
		w.settings = settings
		w.net, w.problems = w.reader.Network(settings)
	}
	return w.net, w.problems
}

// last is what was read last; until then what counts where nobody wrote anything.
func (w *written) last() calico.Net {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.net.Nodes == nil {
		w.net, w.problems = calico.Network(nil)
	}
	return w.net
}

// seen is the cluster as the store has it, or as it is remembered, and whether either is known; and what is
// written about the network has its place in it. recalled says that it is remembered.
func (a *Agent) seen() (c model.Cluster, known, recalled bool) {
	c, synced := a.view.Snapshot()
	if !synced {
		if c, known = a.rememberedCluster(); !known {
			return c, false, true
		}
	}
	net, problems := a.written.read(c.Settings)
	a.update(func(s *state) { s.writtenIssues = problems })
	c.Pools = withWritten(c.Pools, net.Pools)
	if len(net.Nodes) > 0 {
		c.Nodes = slices.Clone(c.Nodes)
		for i := range c.Nodes {
			net.Overlay(&c.Nodes[i])
		}
	}
	return c, true, !synced
}

// withWritten are the pools that are filed, and those of Calico's words. A written pool of the range of a filed one
// says how that is carried, and leaves it its name and its blocks, which nodes own already.
func withWritten(filed, written []model.Pool) []model.Pool {
	if len(written) == 0 {
		return filed
	}
	pools := slices.Clone(filed)
	for _, w := range written {
		i := slices.IndexFunc(pools, func(p model.Pool) bool { return p.CIDR == w.CIDR })
		if i < 0 {
			pools = append(pools, w)
			continue
		}
		p := pools[i]
		w.Name, w.BlockSize, w.MaxBlocks, w.Min, w.Max = p.Name, p.BlockSize, p.MaxBlocks, p.Min, p.Max
		pools[i] = w
	}
	slices.SortFunc(pools, func(x, y model.Pool) int { return strings.Compare(x.Name, y.Name) })
	return pools
}

// ipamSettings are what counts for all pools, as the last pass knew it.
func (a *Agent) ipamSettings() ipam.Settings {
	net := a.written.last()
	s := ipam.Settings{IPAM: net.IPAM, Reserved: net.Reserved, CoolDown: time.Duration(a.Config.Cooldown)}
	if n := net.IPAM.CooldownSeconds; n != nil {
		s.CoolDown = time.Duration(*n) * time.Second
	}
	return s
}

// peeringConfig is what people wrote about BGP, with the passwords that it names.
func (a *Agent) peeringConfig(settings []model.Setting) peering.Config {
	net, _ := a.written.read(settings)
	c := net.BGP
	c.Peers = slices.Clone(c.Peers)
	c.Unlock(a.password)
	return c
}

// maxPassword is what the kernel takes (TCP_MD5SIG_MAXKEYLEN), in bytes.
const maxPassword = 80

// password reads the file of the folder bgp.passwords that ref, NAME/KEY, names; a line's end at its end does not
// count.
func (a *Agent) password(ref string) (peering.Secret, error) {
	if a.Config.BGP.Passwords == "" {
		return "", errors.New("heddle.yaml names no folder bgp.passwords")
	}
	f, err := os.OpenInRoot(a.Config.BGP.Passwords, ref)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	text, err := io.ReadAll(io.LimitReader(f, maxPassword+3))
	if err != nil {
		return "", err
	}
	line := strings.TrimRight(string(text), "\r\n")
	if len(line) > maxPassword {
		return "", fmt.Errorf("it is longer than %d bytes, the most that TCP MD5 takes", maxPassword)
	}
	return peering.Secret(line), nil
}
