// Package config is the agent's own configuration: the YAML of heddle.yaml as a value, with its
// defaults and its validation. It reads no file.
package config

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/validation"
	"sigs.k8s.io/yaml"

	"github.com/heddle-net/heddle/internal/model"
)

// StoreType names a store.
type StoreType string

// The stores.
const (
	StoreEtcd    StoreType = "etcd"    // any etcd v3, also the one that `heddle store` runs
	StoreFlannel StoreType = "flannel" // an etcd with Flannel's layout, shared with flanneld
	// StoreKubernetes is the API server: nodes, pods and policies are its own objects.
	StoreKubernetes StoreType = "kubernetes"
)

// Config is what heddle.yaml and the agent's flags say.
type Config struct {
	// Node is this node's name; the host's name when empty.
	Node string `json:"node,omitempty"`
	// Address are the node's own addresses that peers use, at most one of each family. Empty: the
	// address by which the kernel reaches the peers.
	Address []netip.Addr `json:"address,omitempty"`
	// PublicAddress are addresses by which nodes outside this node's segment reach it, when a NAT
	// stands between.
	PublicAddress []netip.Addr `json:"publicAddress,omitempty"`
	Store         Store        `json:"store"`
	// Labels are what selectors of pools and BGP peers see of this node. In Kubernetes they are the Node object's.
	Labels map[string]string `json:"labels,omitempty"`
	BGP    BGP               `json:"bgp,omitempty"`
	// NetConf is a net-conf.json in Flannel's words; the agent files its pools and follows changes.
	NetConf    string           `json:"netConf,omitempty"`
	Attachment model.Attachment `json:"attachment,omitempty"`
	Bridge     string           `json:"bridge,omitempty"`
	// Masquerade hides pods that talk to the outside behind the node (Flannel's --ip-masq).
	Masquerade *bool `json:"masquerade,omitempty"`
	// StateDir survives a reboot: node id, blocks. RunDir does not: sockets, what pods hold.
	StateDir   string `json:"stateDir,omitempty"`
	RunDir     string `json:"runDir,omitempty"`
	CNIConfDir string `json:"cniConfDir,omitempty"`
	// CNINetwork is the name in the conflist.
	CNINetwork string `json:"cniNetwork,omitempty"`
	// SubnetFile, when set, is written in Flannel's subnet.env format.
	SubnetFile string `json:"subnetFile,omitempty"`
	// HostLocalDir is where the host-local IPAM plugin records the addresses of pods that Flannel's CNI
	// chain made. They are not given out while they are there.
	HostLocalDir string `json:"hostLocalDir,omitempty"`
	// Metrics is a further address for /metrics, /healthz, /readyz: host:port or unix:/path.
	Metrics string `json:"metrics,omitempty"`
	// LeaseTTL is after how long without a heartbeat a node counts as lost; LeaseGrace how long after
	// that it is withdrawn from the others' plans and its blocks may be given away.
	LeaseTTL   Duration `json:"leaseTTL,omitempty"`
	LeaseGrace Duration `json:"leaseGrace,omitempty"`
	// Cooldown is how long an address rests before another workload gets it.
	Cooldown Duration `json:"cooldown,omitempty"`
}

// BGP is what a node may say of itself; all else about BGP are Calico's resources in the store.
type BGP struct {
	// ASN is this node's autonomous system, when it is not the network's.
	ASN uint32 `json:"asn,omitempty"`
	// ClusterID makes the node a route reflector of that cluster, in the form of an IPv4 address.
	ClusterID netip.Addr `json:"clusterID,omitzero"`
	// Passwords is a folder of files, one password each, that BGPPeers name.
	Passwords string `json:"passwords,omitempty"`
}

// Store says where the cluster's data is.
type Store struct {
	Type      StoreType `json:"type,omitempty"`
	Endpoints []string  `json:"endpoints,omitempty"`
	Prefix    string    `json:"prefix,omitempty"`
	CA        string    `json:"ca,omitempty"`
	Cert      string    `json:"cert,omitempty"`
	Key       string    `json:"key,omitempty"`
	// Kubeconfig says how to reach the API server; empty: as pods do, by their service account.
	Kubeconfig string `json:"kubeconfig,omitempty"`
}

// Duration is a time.Duration that is written as 90s or 24h.
type Duration time.Duration

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	*d = Duration(v)
	return err
}

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// Default is the configuration of a node about which nothing was said.
func Default() Config {
	yes := true
	return Config{
		Store:        Store{Type: StoreEtcd, Endpoints: []string{"http://127.0.0.1:2379"}},
		Attachment:   model.AttachBridge,
		Bridge:       "cni0",
		Masquerade:   &yes,
		StateDir:     "/var/lib/heddle",
		RunDir:       "/run/heddle",
		CNIConfDir:   "/etc/cni/net.d",
		CNINetwork:   "heddle",
		HostLocalDir: "/var/lib/cni/networks",
		LeaseTTL:     Duration(90 * time.Second),
		LeaseGrace:   Duration(24 * time.Hour),
		Cooldown:     Duration(30 * time.Second),
	}
}

// Parse reads heddle.yaml over the defaults. Unknown fields are refused by name.
func Parse(text []byte) (Config, error) {
	c := Default()
	if len(text) > 1<<20 {
		return c, &model.FieldError{Noun: "heddle.yaml", Field: "size", Value: fmt.Sprint(len(text)), Want: "at most 1 MiB"}
	}
	if err := yaml.UnmarshalStrict(text, &c); err != nil {
		return c, explain(text, err)
	}
	return c, nil
}

// Validate checks a complete configuration.
func (c *Config) Validate() error {
	noun := "heddle.yaml"
	bad := func(field, value, want string) error {
		return &model.FieldError{Noun: noun, Field: field, Value: value, Want: want}
	}
	var errs []error
	add := func(ok bool, field, value, want string) {
		if !ok {
			errs = append(errs, bad(field, value, want))
		}
	}
	add(model.ValidName(c.Node), "node", c.Node, "a lower-case RFC 1123 name of at most 253 characters")
	errs = append(errs, onePerFamily(noun, "address", c.Address), onePerFamily(noun, "publicAddress", c.PublicAddress))
	add(c.Attachment == model.AttachBridge || c.Attachment == model.AttachRouted, "attachment", string(c.Attachment), "bridge or routed")
	add(model.ValidIfName(c.Bridge), "bridge", c.Bridge, "an interface name of 1..15 bytes")
	add(slices.Contains([]StoreType{StoreEtcd, StoreFlannel, StoreKubernetes}, c.Store.Type), "store.type", string(c.Store.Type), "etcd, flannel or kubernetes")
	add(c.Store.Kubeconfig == "" || c.Store.Type == StoreKubernetes, "store.kubeconfig", c.Store.Kubeconfig, "nothing with store type "+string(c.Store.Type))
	add(c.NetConf != "" || c.Store.Type != StoreKubernetes, "netConf", "", "a net-conf.json with store type kubernetes: its Network is the cluster's range of pod addresses")
	add(len(c.Store.Endpoints) > 0, "store.endpoints", "", "at least one URL, such as https://192.168.0.4:2379")
	for _, e := range c.Store.Endpoints {
		add(strings.HasPrefix(e, "http://") || strings.HasPrefix(e, "https://") || strings.HasPrefix(e, "unix://"), "store.endpoints", e, "a URL that begins with https://, http:// or unix://")
	}
	add((c.Store.Cert == "") == (c.Store.Key == ""), "store.cert, store.key", strings.TrimSpace(c.Store.Cert+" "+c.Store.Key), "both or none")
	for _, d := range []struct{ field, dir string }{{"stateDir", c.StateDir}, {"runDir", c.RunDir}, {"cniConfDir", c.CNIConfDir}, {"hostLocalDir", c.HostLocalDir}} {
		add(filepath.IsAbs(d.dir), d.field, d.dir, "an absolute path")
	}
	for k, v := range c.Labels {
		add(validLabel(k, v), "labels", k+"="+v, "a label's key and value as Kubernetes has them")
	}
	add(!c.BGP.ClusterID.IsValid() || c.BGP.ClusterID.Is4(), "bgp.clusterID", c.BGP.ClusterID.String(), "the form of an IPv4 address, such as 244.0.0.1")
	add(c.BGP.Passwords == "" || filepath.IsAbs(c.BGP.Passwords), "bgp.passwords", c.BGP.Passwords, "an absolute path")
	add(model.ValidName(c.CNINetwork), "cniNetwork", c.CNINetwork, "a lower-case RFC 1123 name")
	add(c.Metrics == "" || validListen(c.Metrics), "metrics", c.Metrics, "host:port, such as 127.0.0.1:9100, or unix:/path")
	add(c.LeaseTTL >= Duration(3*time.Second), "leaseTTL", time.Duration(c.LeaseTTL).String(), "at least 3s")
	add(c.LeaseGrace >= 0, "leaseGrace", time.Duration(c.LeaseGrace).String(), "0s or more")
	add(c.Cooldown >= 0, "cooldown", time.Duration(c.Cooldown).String(), "0s or more")
	return errors.Join(errs...)
}

func validLabel(key, value string) bool {
	return len(validation.IsQualifiedName(key)) == 0 && len(validation.IsValidLabelValue(value)) == 0
}

func onePerFamily(noun, field string, addrs []netip.Addr) error {
	seen := map[model.Family]bool{}
	for _, a := range addrs {
		f := model.FamilyOf(a)
		if seen[f] || a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || a.Zone() != "" {
			return &model.FieldError{Noun: noun, Field: field, Value: a.String(), Want: "at most one unicast address of each family"}
		}
		seen[f] = true
	}
	return nil
}
