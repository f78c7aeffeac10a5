package agent

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"

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
