package agent

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/internal/config"
	"github.com/heddle-net/heddle/internal/model"
)

// ownMasquerade sets what Flannel's layout has no word for: there, masquerading is each node's own.
func (a *Agent) ownMasquerade(c *model.Cluster) {
	if a.Config.Store.Type != config.StoreFlannel {
		return
	}
	c.Pools = slices.Clone(c.Pools)
	for i := range c.Pools {
		c.Pools[i].Masquerade = a.Config.Masquerade != nil && *a.Config.Masquerade
	}
}

// hostLocalHas tells whether the IPAM plugin of Flannel's CNI chain has given addr to a pod: it keeps a
// file of that name per network until the pod is gone.
func hostLocalHas(dir string, addr netip.Addr) bool {
	networks, err := os.ReadDir(dir)
	if err != nil {
		return false // that chain never ran here
	}
	return slices.ContainsFunc(networks, func(n os.DirEntry) bool {
		_, err := os.Lstat(filepath.Join(dir, n.Name(), addr.String()))
		return err == nil
	})
}

// hostLocalFree gives back what that plugin keeps of a container's interface: its own chain is not asked any
// more when the container ends on a node that Heddle has taken over. The files are as host-local writes them,
// named by the address, with the container's id and the interface's name as lines.
func hostLocalFree(dir, containerID, ifName string) (freed []netip.Addr, err error) {
	networks, rerr := os.ReadDir(dir)
	if rerr != nil {
		return nil, nil // that chain never ran here
	}
	for _, n := range networks {
		some, ferr := hostLocalFreeIn(filepath.Join(dir, n.Name()), containerID, ifName)
		freed, err = append(freed, some...), errors.Join(err, ferr)
	}
	return freed, err
}

func hostLocalFreeIn(dir, containerID, ifName string) (freed []netip.Addr, err error) {
	var held []netip.Addr
	files, rerr := os.ReadDir(dir)
	if rerr != nil {
		return nil, nil // not a network's folder
	}
	has := func(a netip.Addr) bool {
		text, err := os.ReadFile(filepath.Join(dir, a.String()))
		id, name, _ := strings.Cut(strings.TrimSpace(string(text)), "\n")
		return err == nil && strings.TrimSpace(id) == containerID && (name == "" || name == ifName)
	}
	for _, f := range files {
		if a, err := netip.ParseAddr(f.Name()); err == nil && a.String() == f.Name() && has(a) {
			held = append(held, a)
		}
	}
	if len(held) == 0 {
		return nil, nil
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600) // the plugin's own
	if err != nil {
		return nil, fmt.Errorf("host-local: %w", err)
	}
	defer func() { _ = lock.Close() }()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return nil, fmt.Errorf("host-local: lock %s: %w", lock.Name(), err)
	}
	for _, a := range held {
		if !has(a) {
			continue // somebody else's by now
		}
		if err := os.Remove(filepath.Join(dir, a.String())); err != nil {
			return freed, fmt.Errorf("host-local: %w", err)
		}
		freed = append(freed, a)
	}
	return freed, nil
}
