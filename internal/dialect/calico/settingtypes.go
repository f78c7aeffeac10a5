package calico

import (
	"encoding/json"
)

// The objects about the network itself as people write them. Fields that are not here cannot be honoured, and are
// refused by name.

// IPPool is a range of addresses and how it is carried.
type IPPool struct {
	Meta `json:",inline"`
	Spec IPPoolSpec `json:"spec"`
}

// IPPoolSpec is the content of an IPPool.
type IPPoolSpec struct {
	CIDR              string   `json:"cidr"`
	VXLANMode         string   `json:"vxlanMode,omitempty"` // "Never" when empty, "CrossSubnet", "Always"
	IPIPMode          string   `json:"ipipMode,omitempty"`  // the same
	NATOutgoing       bool     `json:"natOutgoing,omitempty"`
	Disabled          bool     `json:"disabled,omitempty"`
	DisableBGPExport  bool     `json:"disableBGPExport,omitempty"`
	BlockSize         int      `json:"blockSize,omitempty"` // 26 or 122 when 0
	NodeSelector      string   `json:"nodeSelector,omitempty"`
	NamespaceSelector string   `json:"namespaceSelector,omitempty"`
	AllowedUses       []string `json:"allowedUses,omitempty"`
	AssignmentMode    string   `json:"assignmentMode,omitempty"` // "Automatic" when empty, "Manual"
}

// IPReservation keeps addresses from being given out.
type IPReservation struct {
	Meta `json:",inline"`
	Spec IPReservationSpec `json:"spec"`
}

// IPReservationSpec is the content of an IPReservation.
type IPReservationSpec struct {
	ReservedCIDRs []string `json:"reservedCIDRs,omitempty"` // networks or addresses
}

// IPAMConfiguration says how nodes take blocks. crd.projectcalico.org calls it IPAMConfig.
type IPAMConfiguration struct {
	Meta `json:",inline"`
	Spec IPAMConfigurationSpec `json:"spec"`
}

// IPAMConfigurationSpec is the content of an IPAMConfiguration.
type IPAMConfigurationSpec struct {
	StrictAffinity     bool  `json:"strictAffinity"`
	MaxBlocksPerHost   int   `json:"maxBlocksPerHost,omitempty"`
	AutoAllocateBlocks *bool `json:"autoAllocateBlocks,omitempty"` // true when nil
	IPCooldownSeconds  *int  `json:"ipCooldownSeconds,omitempty"`
	// MinIPReclaimAgeSeconds is another name of that.
	MinIPReclaimAgeSeconds *int `json:"minIPReclaimAgeSeconds,omitempty"`
}

// BGPConfiguration is what all nodes say in BGP ("default"), or one says otherwise ("node.NAME").
type BGPConfiguration struct {
	Meta `json:",inline"`
	Spec BGPConfigurationSpec `json:"spec"`
}

// BGPConfigurationSpec is the content of a BGPConfiguration.
type BGPConfigurationSpec struct {
	NodeToNodeMeshEnabled  *bool             `json:"nodeToNodeMeshEnabled,omitempty"` // true when nil
	ASNumber               *ASNumber         `json:"asNumber,omitempty"`
	ListenPort             int               `json:"listenPort,omitempty"`
	ServiceClusterIPs      []CIDRBlock       `json:"serviceClusterIPs,omitempty"`
	ServiceExternalIPs     []CIDRBlock       `json:"serviceExternalIPs,omitempty"`
	ServiceLoadBalancerIPs []CIDRBlock       `json:"serviceLoadBalancerIPs,omitempty"`
	Communities            []NamedCommunity  `json:"communities,omitempty"`
	PrefixAdvertisements   []Advertisement   `json:"prefixAdvertisements,omitempty"`
	NodeMeshPassword       *BGPPassword      `json:"nodeMeshPassword,omitempty"`
	NodeMeshMaxRestartTime string            `json:"nodeMeshMaxRestartTime,omitempty"`
	BindMode               string            `json:"bindMode,omitempty"`                       // "NodeIP"
	LoadBalancerAggregated string            `json:"serviceLoadBalancerAggregation,omitempty"` // "Enabled"
	LogSeverityScreen      string            `json:"logSeverityScreen,omitempty"`              // changes nothing
	IgnoredInterfaces      []json.RawMessage `json:"ignoredInterfaces,omitempty"`              // changes nothing
	ProgramClusterRoutes   string            `json:"programClusterRoutes,omitempty"`           // changes nothing
}

// CIDRBlock is a range of service addresses.
type CIDRBlock struct {
	CIDR string `json:"cidr,omitempty"`
}

// NamedCommunity gives a community a name.
type NamedCommunity struct {
	Name  string `json:"name,omitempty"`
	Value string `json:"value,omitempty"`
}

// Advertisement adds communities, by name or value, to what is announced inside a range.
type Advertisement struct {
	CIDR        string   `json:"cidr,omitempty"`
	Communities []string `json:"communities,omitempty"`
}

// BGPPassword says where a password is.
type BGPPassword struct {
	SecretKeyRef *SecretKeyRef `json:"secretKeyRef,omitempty"`
}

// SecretKeyRef is a key of a Kubernetes Secret; here, a file NAME/KEY.
type SecretKeyRef struct {
	Name     string `json:"name,omitempty"`
	Key      string `json:"key"`
	Optional *bool  `json:"optional,omitempty"`
}

// BGPPeer is a neighbour of some nodes.
type BGPPeer struct {
	Meta `json:",inline"`
	Spec BGPPeerSpec `json:"spec"`
}

// BGPPeerSpec is the content of a BGPPeer.
type BGPPeerSpec struct {
	Node                 string       `json:"node,omitempty"`
	NodeSelector         string       `json:"nodeSelector,omitempty"`
	PeerIP               string       `json:"peerIP,omitempty"` // with or without a port
	ASNumber             *ASNumber    `json:"asNumber,omitempty"`
	LocalASNumber        *ASNumber    `json:"localASNumber,omitempty"`
	PeerSelector         string       `json:"peerSelector,omitempty"`
	ReversePeering       string       `json:"reversePeering,omitempty"` // "Auto" when empty, "Manual"
	KeepOriginalNextHop  bool         `json:"keepOriginalNextHop,omitempty"`
	NextHopMode          string       `json:"nextHopMode,omitempty"` // "Auto" when empty, "Self", "Keep"
	Password             *BGPPassword `json:"password,omitempty"`
	SourceAddress        string       `json:"sourceAddress,omitempty"` // "UseNodeIP" when empty, "None"
	MaxRestartTime       string       `json:"maxRestartTime,omitempty"`
	KeepaliveTime        string       `json:"keepaliveTime,omitempty"`
	AllowedLocalASNumber *int         `json:"numAllowedLocalASNumbers,omitempty"`
	TTLSecurity          *int         `json:"ttlSecurity,omitempty"`
	ReachableBy          string       `json:"reachableBy,omitempty"` // refused
	Filters              []string     `json:"filters,omitempty"`
}

// BGPFilter is a list of rules about routes.
type BGPFilter struct {
	Meta `json:",inline"`
	Spec BGPFilterSpec `json:"spec"`
}

// BGPFilterSpec is the content of a BGPFilter.
type BGPFilterSpec struct {
	ExportV4 []BGPFilterRule `json:"exportV4,omitempty"`
	ImportV4 []BGPFilterRule `json:"importV4,omitempty"`
	ExportV6 []BGPFilterRule `json:"exportV6,omitempty"`
	ImportV6 []BGPFilterRule `json:"importV6,omitempty"`
}

// BGPFilterRule is one rule. All that is set must match.
type BGPFilterRule struct {
	CIDR          string            `json:"cidr,omitempty"`
	PrefixLength  *PrefixLength     `json:"prefixLength,omitempty"`
	Source        string            `json:"source,omitempty"` // "RemotePeers"
	MatchOperator string            `json:"matchOperator,omitempty"`
	PeerType      string            `json:"peerType,omitempty"` // "eBGP", "iBGP"
	Communities   *CommunityMatch   `json:"communities,omitempty"`
	ASPathPrefix  []ASNumber        `json:"asPathPrefix,omitempty"`
	Action        string            `json:"action"`
	Operations    []FilterOperation `json:"operations,omitempty"`
	Interface     string            `json:"interface,omitempty"` // refused
	Priority      json.RawMessage   `json:"priority,omitempty"`  // refused
}

// PrefixLength bounds the length of a prefix.
type PrefixLength struct {
	Min *int `json:"min,omitempty"`
	Max *int `json:"max,omitempty"`
}

// CommunityMatch are communities that a route must have.
type CommunityMatch struct {
	Values []string `json:"values"`
}

// FilterOperation changes a route: one of its fields is set.
type FilterOperation struct {
	AddCommunity *struct {
		Value string `json:"value"`
	} `json:"addCommunity,omitempty"`
	PrependASPath *struct {
		Prefix []ASNumber `json:"prefix"`
	} `json:"prependASPath,omitempty"`
	SetPriority json.RawMessage `json:"setPriority,omitempty"` // refused
}

// Node is what people say of a node.
type Node struct {
	Meta `json:",inline"`
	Spec NodeSpec `json:"spec"`
}

// NodeSpec is the content of a Node.
type NodeSpec struct {
	BGP *NodeBGPSpec `json:"bgp,omitempty"`
	// OrchRefs change nothing.
	OrchRefs []json.RawMessage `json:"orchRefs,omitempty"`
}

// NodeBGPSpec is what BGP says of a node.
type NodeBGPSpec struct {
	ASNumber                *ASNumber `json:"asNumber,omitempty"`
	RouteReflectorClusterID string    `json:"routeReflectorClusterID,omitempty"`
	// The addresses are checked, and no more: a node says itself which it has.
	IPv4Address string `json:"ipv4Address,omitempty"`
	IPv6Address string `json:"ipv6Address,omitempty"`
}

// FelixConfiguration is what Calico's agent is told ("default"); see felix.go for its fields.
type FelixConfiguration struct {
	Meta `json:",inline"`
	Spec map[string]json.RawMessage `json:"spec"`
}

// ASNumber is 65000, "65000" or "1.10": as it was written, a number in its digits.
type ASNumber string

// UnmarshalJSON takes everything, for what is wrong is told by its path.
func (a *ASNumber) UnmarshalJSON(b []byte) error {
	*a = ASNumber(numberOrText(b))
	return nil
}
