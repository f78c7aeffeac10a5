package cli

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/heddle-net/heddle/internal/dialect"
	"github.com/heddle-net/heddle/internal/dialect/calico"
	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/store"
)

const ipPoolKind = "IPPool"

// pools are all pools of a store: those that are filed as such, and those of its IPPools.
type pools struct {
	filed  []model.Pool
	ours   []model.Pool // of IPPools
	blocks []model.Block
}

// poolsWith reads the pools of a store with these IPPools written over what is there.
func poolsWith(ctx context.Context, s store.Store, over []model.Resource) (before, after pools, err error) {
	items, _, err := s.List(ctx, model.KindPool, model.KindBlock, model.KindSetting)
	if err != nil {
		return before, after, err
	}
	old := map[string]model.Setting{}
	for _, it := range items {
		switch o := it.Object.(type) {
		case *model.Pool:
			before.filed = append(before.filed, *o)
		case *model.Block:
			before.blocks = append(before.blocks, *o)
		case *model.Setting:
			if o.Type == ipPoolKind {
				old[o.Key()] = *o
			}
		}
	}
	read := func() []model.Pool {
		var list []model.Setting
		for _, s := range old {
			list = append(list, s)
		}
		n, _ := calico.Network(list)
		return n.Pools
	}
	before.ours = read()
	for _, r := range over {
		if r.Type == ipPoolKind {
			old[r.Key()] = model.Setting{Resource: r}
		}
	}
	after = pools{before.filed, read(), before.blocks}
	return before, after, nil
}

// checkPools holds IPPools that are to be written against what is there: pools do not overlap, and a pool in use
// keeps its blocks.
func checkPools(ctx context.Context, s store.Store, objects []model.Resource) error {
	written := map[string]bool{}
	for i := range objects {
		if kindOf(&objects[i]).Setting && objects[i].Type == ipPoolKind {
			written[objects[i].Name] = true
		}
	}
	if len(written) == 0 {
		return nil
	}
	before, after, err := poolsWith(ctx, s, objects)
	if err != nil {
		return err
	}
	for i := range after.ours {
		p := &after.ours[i]
		if !written[p.Name] {
			continue
		}
		if err := checkApart(p, &after); err != nil {
			return err
		}
		k := slices.IndexFunc(before.ours, func(q model.Pool) bool { return q.Name == p.Name })
		if k < 0 {
			continue
		}
		if was := &before.ours[k]; was.BlockSize != p.BlockSize && was.Family() == p.Family() {
			return poolError(p, "blockSize", strconv.Itoa(p.BlockSize), fmt.Sprintf("%d as it is: the size of blocks cannot change; make another pool, and set disabled: true on this one", was.BlockSize))
		}
		for _, b := range after.blocks {
			if b.Pool == p.Name && (!p.CIDR.Contains(b.CIDR.Addr()) || b.CIDR.Bits() < p.CIDR.Bits()) {
				return poolError(p, "cidr", p.CIDR.String(), fmt.Sprintf("a range with block %s in it, which node %s has; set disabled: true and drain its workloads first", b.CIDR, b.Node))
			}
		}
	}
	return nil
}

// checkApart refuses a pool whose addresses or whose name another pool has. One of the very range of a pool that is
// filed says how that one is carried.
func checkApart(p *model.Pool, all *pools) error {
	for i := range all.ours {
		if q := &all.ours[i]; q.Name != p.Name && q.CIDR.Overlaps(p.CIDR) {
			return poolError(p, "cidr", p.CIDR.String(), fmt.Sprintf("a range apart from IPPool %s %s", q.Name, q.CIDR))
		}
	}
	for i := range all.filed {
		q := &all.filed[i]
		switch {
		case q.CIDR == p.CIDR:
		case q.CIDR.Overlaps(p.CIDR):
			return poolError(p, "cidr", p.CIDR.String(), fmt.Sprintf("a range apart from pool %s %s of heddle network show", q.Name, q.CIDR))
		case q.Name == p.Name:
			return &model.FieldError{Noun: ipPoolKind + " " + p.Name, Field: "metadata.name", Value: p.Name, Want: "a name that no pool of heddle network show has"}
		case q.Path == model.PathVXLAN && p.Path == model.PathVXLAN && q.VXLAN != p.VXLAN:
			return poolError(p, "vxlanMode", string(p.Encap), fmt.Sprintf("Never, or the VXLAN network of pool %s in the FelixConfiguration: vxlanVNI %d and vxlanPort %d; a node has one", q.Name, q.VXLAN.VNI, q.VXLAN.Port))
		}
	}
	return nil
}

func poolError(p *model.Pool, field, value, want string) error {
	return &model.FieldError{Noun: ipPoolKind + " " + p.Name, Field: "spec." + field, Value: value, Want: want}
}

// checkUnused refuses to delete a pool of which nodes have blocks.
func checkUnused(ctx context.Context, s store.Store, k dialect.Kind, name string) error {
	if !k.Setting || k.Kind != ipPoolKind {
		return nil
	}
	items, _, err := s.List(ctx, model.KindBlock)
	if err != nil {
		return err
	}
	for _, it := range items {
		if b := it.Object.(*model.Block); b.Pool == name {
			return fmt.Errorf("%s %s is in use: node %s has block %s; set disabled: true and drain its workloads first", ipPoolKind, name, b.Node, b.CIDR)
		}
	}
	return nil
}

// settingColumns are those that calicoctl has, where it has the kind.
func settingColumns(r *model.Resource, wide bool) (head, cells []string) {
	o, err := calico.DecodeSetting(r)
	if err != nil {
		return []string{"WRONG"}, []string{err.Error()}
	}
	add := func(name, cell string) { head, cells = append(head, name), append(cells, dash(cell)) }
	switch o := o.(type) {
	case *calico.IPPool:
		add("CIDR", o.Spec.CIDR)
		if wide {
			add("NAT", strconv.FormatBool(o.Spec.NATOutgoing))
			add("IPIPMODE", cmp.Or(o.Spec.IPIPMode, "Never"))
			add("VXLANMODE", cmp.Or(o.Spec.VXLANMode, "Never"))
			add("DISABLED", strconv.FormatBool(o.Spec.Disabled))
			add("DISABLEBGPEXPORT", strconv.FormatBool(o.Spec.DisableBGPExport))
		}
		add("SELECTOR", cmp.Or(o.Spec.NodeSelector, "all()"))
	case *calico.IPReservation:
		add("RESERVED", strings.Join(o.Spec.ReservedCIDRs, ","))
	case *calico.IPAMConfiguration:
		add("STRICTAFFINITY", strconv.FormatBool(o.Spec.StrictAffinity))
		add("MAXBLOCKSPERHOST", strconv.Itoa(o.Spec.MaxBlocksPerHost))
		add("AUTOALLOCATEBLOCKS", strconv.FormatBool(o.Spec.AutoAllocateBlocks == nil || *o.Spec.AutoAllocateBlocks))
	case *calico.BGPConfiguration:
		add("MESHENABLED", strconv.FormatBool(o.Spec.NodeToNodeMeshEnabled == nil || *o.Spec.NodeToNodeMeshEnabled))
		add("ASNUMBER", asn(o.Spec.ASNumber))
		if wide {
			add("LISTENPORT", strconv.Itoa(cmp.Or(o.Spec.ListenPort, 179)))
		}
	case *calico.BGPPeer:
		add("PEERIP", cmp.Or(o.Spec.PeerIP, o.Spec.PeerSelector))
		add("NODE", cmp.Or(o.Spec.Node, o.Spec.NodeSelector, "(global)"))
		add("ASN", asn(o.Spec.ASNumber))
		if wide {
			add("FILTERS", strings.Join(o.Spec.Filters, ","))
		}
	case *calico.BGPFilter:
		add("IMPORT", fmt.Sprintf("%d+%d", len(o.Spec.ImportV4), len(o.Spec.ImportV6)))
		add("EXPORT", fmt.Sprintf("%d+%d", len(o.Spec.ExportV4), len(o.Spec.ExportV6)))
	case *calico.Node:
		b := cmp.Or(o.Spec.BGP, &calico.NodeBGPSpec{})
		add("ASN", asn(b.ASNumber))
		add("CLUSTERID", b.RouteReflectorClusterID)
	case *calico.FelixConfiguration:
		add("FIELDS", strconv.Itoa(len(o.Spec)))
	}
	return head, cells
}

// asn is the number of an AS; "(global)" for that of all.
func asn(n *calico.ASNumber) string {
	if n == nil {
		return "(global)"
	}
	return string(*n)
}
