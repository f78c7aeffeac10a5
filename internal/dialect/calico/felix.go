package calico

import (
	"encoding/json"
	"strconv"
	"strings"

	"github.com/heddle-net/heddle/internal/model"
)

// felixQuiet are fields of a FelixConfiguration that say how Felix works inside, what it logs and measures, or how it
// uses iptables, IP sets and eBPF: nothing here corresponds to them, and nothing is lost without them. A name that
// ends with * stands for all that begin so.
var felixQuiet = []string{
	"log*", "debug*", "health*", "prometheus*", "usageReporting*", "flowLogs*", "reportingInterval", "reportingTTL", "endpointReporting*",
	"iptables*", "nftables*", "ipset*", "ipSets*", "maxIpsetSize", "bpf*", "xdp*", "genericXDPEnabled", "netlinkTimeout*",
	"routeRefreshInterval", "interfaceRefreshInterval", "dataplaneWatchdogTimeout", "dataplaneDriver", "useInternalDataplaneDriver",
	"featureDetectOverride", "featureGates", "openstackRegion", "metadataAddr", "metadataPort", "kubeNodePortRanges",
	"goGCThreshold", "goMaxProcs", "goMemoryLimitMB", "sidecarAccelerationEnabled", "programClusterRoutes", "removeExternalRoutes",
	"endpointStatusPathPrefix", "awsSrcDstCheck", "routeSyncDisabled", "wireguardInterfaceName*", "wireguardListeningPort*",
	"wireguardMTU*", "wireguardRoutingRulePriority", "wireguardKeepAlive", "wireguardThreadingEnabled", "vxlanEnabled", "ipipEnabled",
	"interfaceExclude", "serviceLoopPrevention", "policySyncPathPrefix", "ipv6Support", "routeSource",
}

// felixOnly are fields that may say just this, which is what Heddle does.
var felixOnly = map[string]string{
	"defaultEndpointToHostAction": `"Accept"`, "wireguardEnabled": "false", "wireguardEnabledV6": "false", "wireguardHostEncryptionEnabled": "false",
	"natOutgoingExclusions": `"IPPoolsOnly"`, "interfacePrefix": `"cali"`, "chainInsertMode": `"Insert"`,
}

// felix reads a FelixConfiguration: the size and numbers of VXLAN. The others do nothing here, or cannot be
// honoured.
func (p place) felix(o *FelixConfiguration, part func(error)) (func(*reading), error) {
	if err := p.only(o, "default"); err != nil {
		return nil, err
	}
	out := model.VXLAN{VNI: defaultVNI, Port: defaultPort}
	at := p.field("spec")
	for _, name := range sortedKeys(o.Spec) {
		value, here := o.Spec[name], at.field(name)
		number := func(least, most int, to *int) {
			n, err := strconv.Atoi(string(value))
			if err != nil || n < least || n > most {
				part(here.bad(raw(value), strconv.Itoa(least)+".."+strconv.Itoa(most)))
				return
			}
			*to = n
		}
		switch {
		case name == "vxlanVNI":
			number(1, 1<<24-1, &out.VNI)
		case name == "vxlanPort":
			number(1, 65535, &out.Port)
		case name == "vxlanMTU" && string(value) != "0":
			number(576, 65535, &out.MTU)
		case name == "vxlanMTUV6" && string(value) != "0" && string(value) != string(o.Spec["vxlanMTU"]):
			part(here.bad(raw(value), "the number of vxlanMTU: a node has one VXLAN network"))
		case name == "vxlanMTU", name == "vxlanMTUV6", string(value) == "null", felixIsQuiet(name, value), felixOnly[name] != "" && felixOnly[name] == string(value):
		case felixOnly[name] != "":
			part(here.bad(raw(value), felixOnly[name]+", or nothing"))
		default:
			part(here.bad(raw(value), "nothing: it cannot be honoured"))
		}
	}
	return func(r *reading) { r.vxlan = out }, nil
}

func felixIsQuiet(name string, value json.RawMessage) bool {
	if name == "bpfEnabled" && string(value) != "false" || name == "xdpEnabled" && string(value) == "true" {
		return false
	}
	for _, q := range felixQuiet {
		if begin, is := strings.CutSuffix(q, "*"); q == name || is && strings.HasPrefix(name, begin) {
			return true
		}
	}
	return false
}

// spelled is a value as it is to be shown.
type spelled string

// raw is JSON as a value of an error.
func raw(value json.RawMessage) any { return spelled(shorten(string(value))) }
