package calico

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/peering"
)

// Defaults of Calico.
const (
	defaultVNI    = 4096
	defaultPort   = 4789
	defaultBlock4 = 26
	defaultBlock6 = 122
)

// Net is what all settings together say of the network. Lists are sorted.
type Net struct {
	Pools []model.Pool
	// Reserved are not given out, in any pool.
	Reserved []netip.Prefix
	IPAM     model.IPAM
	BGP      peering.Config
	// Nodes are what Node objects say, by name.
	Nodes map[string]NodeOverlay
}

// NodeOverlay is what a Node object says of a node.
type NodeOverlay struct {
	ASN       uint32
	ClusterID netip.Addr
}

// Overlay gives a node what a Node object says of it.
func (n *Net) Overlay(node *model.Node) {
	o := n.Nodes[node.Name]
	node.ASN = cmp.Or(o.ASN, node.ASN)
	if o.ClusterID.IsValid() {
		node.ClusterID = o.ClusterID
	}
}

// reading is a Net as it comes together.
type reading struct {
	Net
	vxlan      model.VXLAN
	configured bool // there is a BGPConfiguration for all nodes
}

// Network reads all settings. One that cannot be honoured is a problem, and the others go on: nothing of it counts, or
// nothing of the field at fault where that leaves nobody open to what they wanted to keep out. The same object in
// both API groups counts once, that of projectcalico.org.
func Network(settings []model.Setting) (Net, []model.Problem) {
	r := reading{
		Net:   Net{IPAM: model.DefaultIPAM(), Nodes: map[string]NodeOverlay{}},
		vxlan: model.VXLAN{VNI: defaultVNI, Port: defaultPort},
	}
	r.BGP.Settings = peering.Settings{
		ASN: peering.DefaultASN, Mesh: true, MeshLimit: peering.DefaultMeshLimit, ListenPort: peering.DefaultPort,
		PerNode: map[string]peering.NodeSettings{},
	}
	var problems []model.Problem
	for _, s := range unique(settings) {
		into, parts, err := readSetting(&s.Resource)
		for _, p := range parts {
			problems = append(problems, settingProblem(&s.Resource, p, model.Warning))
		}
		if err != nil {
			problems = append(problems, settingProblem(&s.Resource, err, model.Failure))
			if s.Type == "BGPConfiguration" && s.Name == "default" {
				r.BGP.Settings.Mesh = false // nobody knows whether it is wanted
			}
			continue
		}
		into(&r)
	}
	r.finish()
	return r.Net, problems
}

// finish puts in what depends on several objects.
func (r *reading) finish() {
	for i := range r.Pools {
		p := &r.Pools[i]
		p.MaxBlocks = cmp.Or(r.IPAM.MaxBlocksPerHost, model.DefaultMaxBlocks)
		if p.Path == model.PathVXLAN {
			p.VXLAN = r.vxlan
		}
	}
	slices.SortFunc(r.Pools, func(a, b model.Pool) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(r.Reserved, netip.Prefix.Compare)
	r.Reserved = slices.Compact(r.Reserved)
	slices.SortFunc(r.BGP.Peers, func(a, b peering.Peer) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(r.BGP.Filters, func(a, b peering.Filter) int { return cmp.Compare(a.Name, b.Name) })
	r.BGP.Wanted = r.configured || len(r.BGP.Peers) > 0
}

// unique are the settings in order, each object once.
func unique(settings []model.Setting) []model.Setting {
	rank := func(s *model.Setting) int {
		if s.Group() == Group {
			return 0
		}
		return 1
	}
	list := slices.Clone(settings)
	slices.SortStableFunc(list, func(a, b model.Setting) int {
		return cmp.Or(cmp.Compare(kindName(&a), kindName(&b)), cmp.Compare(a.Name, b.Name), cmp.Compare(rank(&a), rank(&b)), cmp.Compare(a.Key(), b.Key()))
	})
	return slices.CompactFunc(list, func(a, b model.Setting) bool { return kindName(&a) == kindName(&b) && a.Name == b.Name })
}

// kindName is a kind by one of its names.
func kindName(s *model.Setting) string {
	if s.Type == "IPAMConfig" {
		return "IPAMConfiguration"
	}
	return s.Type
}

// settingProblem words what is wrong with a setting.
func settingProblem(r *model.Resource, err error, severity model.Severity) model.Problem {
	detail := err.Error()
	if e, ok := errors.AsType[*model.FieldError](err); ok {
		detail = strings.TrimPrefix(e.Error(), e.Noun+": ")
	}
	if severity == model.Failure {
		detail += "; nothing of it counts"
	} else {
		detail += "; the rest of it counts"
	}
	return model.Problem{
		Code: "setting-invalid", Severity: severity, Subject: r.String(), Detail: detail,
		Next: fmt.Sprintf("heddle get %s %s -o yaml, and heddle apply with what is wanted", strings.ToLower(r.Type), r.Name),
	}
}

// Reader remembers what settings said when they were last understood, so that one that is spoilt does not take
// away what is in use. The zero Reader is ready.
type Reader struct {
	good map[string]model.Setting
}

// Network is as the function of that name, but a setting that cannot be understood counts as it was before.
func (m *Reader) Network(settings []model.Setting) (Net, []model.Problem) {
	now := make(map[string]model.Setting, len(settings))
	var problems []model.Problem
	list := slices.Clone(settings)
	for i := range list {
		s := &list[i]
		_, _, err := readSetting(&s.Resource)
		before, had := m.good[s.Key()]
		if err != nil && had {
			p := settingProblem(&s.Resource, err, model.Failure)
			p.Detail = strings.TrimSuffix(p.Detail, "; nothing of it counts") + "; what it said before stays in force"
			problems = append(problems, p)
			*s = before
		}
		if err == nil || had {
			now[s.Key()] = *s
		}
	}
	m.good = now
	net, more := Network(list)
	return net, append(problems, more...)
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
