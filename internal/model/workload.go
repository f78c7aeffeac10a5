package model

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"regexp"
	"strings"
	"time"
)

// Attachment is the way in which a workload hangs on its node.
type Attachment string

// The attachment styles.
const (
	AttachBridge Attachment = "bridge" // Flannel's: a port of one bridge that holds the gateway address
	AttachRouted Attachment = "routed" // Calico's: a /32 or /128 behind its own veth
)

// Gateways of the routed style: IPv4 as Calico has it; IPv6 any link-local that the host end holds.
var (
	RoutedGateway4 = netip.MustParseAddr("169.254.1.1")
	RoutedGateway6 = netip.MustParseAddr("fe80::1")
	// RoutedMAC is the MAC of the host end of every routed workload's veth.
	RoutedMAC = "ee:ee:ee:ee:ee:ee"
)

// Workload is one interface of one container on this node. A CNI attachment is named by container
// id and interface name together.
type Workload struct {
	ContainerID string `json:"containerID"`
	IfName      string `json:"ifName"`
	Namespace   string `json:"namespace,omitempty"` // K8S_POD_NAMESPACE, or empty
	Name        string `json:"name,omitempty"`      // K8S_POD_NAME, or empty
	UID         string `json:"uid,omitempty"`       // K8S_POD_UID, or empty
	Network     string `json:"network,omitempty"`   // the CNI network's name
	// Labels are those of the CNI configuration's args.cni.labels (CNI conventions).
	Labels map[string]string `json:"labels,omitempty"`
	// HostPorts are ports of the node that lead to it, sorted, each once; Bandwidth is nil without a limit.
	HostPorts []HostPort `json:"hostPorts,omitempty"`
	Bandwidth *Bandwidth `json:"bandwidth,omitempty"`
	// Wishes are what it asks of its addresses; nil: nothing.
	Wishes     *Wishes      `json:"wishes,omitempty"`
	Attachment Attachment   `json:"attachment"`
	Addresses  []netip.Addr `json:"addresses"`
	HostLink   string       `json:"hostLink"` // the veth's end on the node
	MAC        string       `json:"mac"`      // of the workload's own end
	MTU        int          `json:"mtu"`      // bytes
	Netns      string       `json:"netns,omitempty"`
	Created    time.Time    `json:"created"`
}

// CNI's own rule for names from outside (spec 1.1.0, "Parameters"); an interface name is what the
// kernel takes: at most 15 bytes, no slash, no white space, not "." or "..".
var (
	containerIDRE = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,254}$`)
	ifNameRE      = regexp.MustCompile(`^[^\s/:\x00-\x1f\x7f]{1,15}$`)
)

// ValidContainerID reports whether s may name a container.
func ValidContainerID(s string) bool { return containerIDRE.MatchString(s) }

// ValidIfName reports whether the kernel would take s as an interface's name.
func ValidIfName(s string) bool { return ifNameRE.MatchString(s) && s != "." && s != ".." }

// Key names the attachment: container id and interface, parted by a slash, which neither can hold.
func (w *Workload) Key() string { return w.ContainerID + "/" + w.IfName }

// String is what a person calls it: namespace/name when known, else the container's id, shortened.
func (w *Workload) String() string {
	if w.Name != "" {
		return w.Namespace + "/" + w.Name
	}
	if len(w.ContainerID) > 13 {
		return w.ContainerID[:13]
	}
	return w.ContainerID
}

// HostLinkName derives the host end's name from the attachment: stable, so that a DEL without any
// record finds it. 48 bits of SHA-256.
func HostLinkName(containerID, ifName string) string {
	h := sha256.Sum256([]byte(containerID + "/" + ifName))
	return hostLinkPrefix + hex.EncodeToString(h[:hostLinkBytes])
}

const (
	hostLinkPrefix = "hd"
	hostLinkBytes  = 6
)

// IsHostLink reports whether an interface's name is one that HostLinkName makes.
func IsHostLink(name string) bool {
	digits, ok := strings.CutPrefix(name, hostLinkPrefix)
	b, err := hex.DecodeString(digits)
	return ok && err == nil && len(b) == hostLinkBytes && digits == strings.ToLower(digits)
}

// Validate checks what came from outside.
func (w *Workload) Validate() error {
	if !ValidContainerID(w.ContainerID) {
		return &FieldError{"workload", "CNI_CONTAINERID", quoteShort(w.ContainerID), "1..255 characters of [A-Za-z0-9_.-] that begin with a letter or digit"}
	}
	if !ValidIfName(w.IfName) {
		return &FieldError{"workload", "CNI_IFNAME", quoteShort(w.IfName), "an interface name of 1..15 bytes without white space, slash or colon"}
	}
	return nil
}

func quoteShort(s string) string {
	if len(s) > 64 {
		s = s[:64] + "…"
	}
	return fmt.Sprintf("%q", s)
}
