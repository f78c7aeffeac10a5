package dialect

import (
	"slices"
	"strings"

	"github.com/heddle-net/heddle/internal/dialect/calico"
	"github.com/heddle-net/heddle/internal/model"
)

// Kind is a kind of object that people can write.
type Kind struct {
	APIVersion string // networking.k8s.io/v1
	Kind       string // NetworkPolicy
	Plural     string // networkpolicies
	Short      []string
	Namespaced bool
	// Setting: it is about the network itself, and filed as model.Setting.
	Setting bool
}

// Versions of the API groups.
const (
	coreV1      = "v1"
	discoveryV1 = "discovery.k8s.io/v1"
	networkV1   = "networking.k8s.io/v1"
	clusterV1   = "policy.networking.k8s.io/v1alpha2"
	calicoV3    = calico.Group + "/v3"
	calicoCRD   = calico.CRDGroup + "/v1"
)

// kinds in the order in which Lookup prefers them.
var kinds = slices.Concat([]Kind{
	{coreV1, "Namespace", "namespaces", []string{"ns"}, false, false},
	{coreV1, "Pod", "pods", []string{"po"}, true, false},
	{coreV1, "ServiceAccount", "serviceaccounts", []string{"sa"}, true, false},
	{discoveryV1, "EndpointSlice", "endpointslices", nil, true, false},
	{networkV1, "NetworkPolicy", "networkpolicies", []string{"netpol"}, true, false},
	{clusterV1, "ClusterNetworkPolicy", "clusternetworkpolicies", []string{"cnp"}, false, false},
}, ofCalico(calicoV3), ofCalico(calicoCRD))

// ofCalico are Calico's kinds in one of its versions.
func ofCalico(version string) []Kind {
	all := []Kind{
		{version, "NetworkPolicy", "networkpolicies", []string{"caliconetworkpolicy", "caliconetworkpolicies"}, true, false},
		{version, "GlobalNetworkPolicy", "globalnetworkpolicies", []string{"gnp"}, false, false},
		{version, "Tier", "tiers", nil, false, false},
		{version, "NetworkSet", "networksets", []string{"netset", "netsets"}, true, false},
		{version, "GlobalNetworkSet", "globalnetworksets", []string{"gnetset", "gnetsets"}, false, false},
		{version, "HostEndpoint", "hostendpoints", []string{"hep", "heps"}, false, false},
		{version, "StagedNetworkPolicy", "stagednetworkpolicies", []string{"snp"}, true, false},
		{version, "StagedGlobalNetworkPolicy", "stagedglobalnetworkpolicies", []string{"sgnp"}, false, false},
		{version, "StagedKubernetesNetworkPolicy", "stagedkubernetesnetworkpolicies", []string{"sknp"}, true, false},
		{version, "IPPool", "ippools", []string{"ipp", "ipps", "pool", "pools"}, false, true},
		{version, "IPReservation", "ipreservations", []string{"reservation", "reservations"}, false, true},
		{version, "IPAMConfiguration", "ipamconfigurations", nil, false, true},
		{version, "IPAMConfig", "ipamconfigs", nil, false, true},
		{version, "BGPConfiguration", "bgpconfigurations", []string{"bgpconfig", "bgpconfigs"}, false, true},
		{version, "BGPPeer", "bgppeers", []string{"bgpp", "bgpps"}, false, true},
		{version, "BGPFilter", "bgpfilters", nil, false, true},
		{version, "FelixConfiguration", "felixconfigurations", []string{"felixconfig", "felixconfigs", "felix"}, false, true},
	}
	if version == calicoV3 { // the other form takes Kubernetes' own
		all = append(all, Kind{version, "Node", "nodes", []string{"no"}, false, true})
	}
	return all
}

// Kinds are all kinds that can be written. The caller may change what it gets.
func Kinds() []Kind {
	all := slices.Clone(kinds)
	for i := range all {
		all[i].Short = slices.Clone(all[i].Short)
	}
	return all
}

// Group is the API group, "" for "v1".
func (k Kind) Group() string {
	group, _, ok := strings.Cut(k.APIVersion, "/")
	if !ok {
		return ""
	}
	return group
}

func (k Kind) calico() bool { return k.APIVersion == calicoV3 || k.APIVersion == calicoCRD }

// Lookup finds a kind by what people call it: its name, its plural or a short name, in any case, alone or with
// its group behind it: netpol, NetworkPolicy, networkpolicies.projectcalico.org, networkpolicies.v3.projectcalico.org.
// Where groups share a name and none is given, Kubernetes' own comes first, then Calico's v3.
func Lookup(word string) (Kind, bool) {
	name, group, _ := strings.Cut(strings.ToLower(word), ".")
	for _, k := range kinds {
		if name != strings.ToLower(k.Kind) && name != k.Plural && !slices.Contains(k.Short, name) {
			continue
		}
		_, version, _ := strings.Cut(k.APIVersion, "/")
		if group == "" || group == k.Group() || group == version+"."+k.Group() {
			return k, true
		}
	}
	return Kind{}, false
}

// kindOf finds a resource's kind.
func kindOf(r *model.Resource) (Kind, error) {
	var names, versions []string
	for _, k := range kinds {
		if k.Kind == r.Type {
			if k.APIVersion == r.APIVersion {
				return k, nil
			}
			versions = append(versions, k.APIVersion)
		}
		if !slices.Contains(names, k.Kind) {
			names = append(names, k.Kind)
		}
	}
	if versions != nil {
		return Kind{}, &model.FieldError{Noun: r.String(), Field: "apiVersion", Value: show(r.APIVersion), Want: strings.Join(versions, " or ")}
	}
	return Kind{}, &model.FieldError{Noun: r.String(), Field: "kind", Value: show(r.Type), Want: "one of " + strings.Join(names, ", ")}
}
