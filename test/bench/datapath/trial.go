package datapath

import (
	"fmt"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/plan"
	"github.com/heddle-net/heddle/test/bench/space"
)

// trials are changes to Heddle's plan that might pay. They run only when named, and show in figures what
// is left out and why.
var trials = []recipe{
	{"try-vxlan-notrack", "vxlan, whose outer packets are not tracked", planned(trial(model.PathVXLAN, func(s *space.Space, i int) error {
		own := nodeAddr(i).Addr()
		return s.Run(fmt.Sprintf(`table inet try {
			chain pre { type filter hook prerouting priority raw; udp dport 8472 ip daddr %s notrack; }
			chain out { type filter hook output priority raw; udp dport 8472 ip saddr %s notrack; }
		}`, own, own), "nft", "-f", "-")
	})), "nft"},
	{"try-vxlan-norpf", "vxlan without a look at where packets came from (rp_filter 0 on the device)", planned(trial(model.PathVXLAN, func(s *space.Space, _ int) error {
		return s.Sysctl("net/ipv4/conf/flannel.1/rp_filter", "0")
	})), ""},
	{"try-host-gw-notrack", "host-gw, pods to pods not tracked: breaks whatever translates pods' addresses", planned(trial(model.PathDirect, func(s *space.Space, _ int) error {
		return s.Run(fmt.Sprintf(`table inet try {
			chain pre { type filter hook prerouting priority raw; ip saddr %s ip daddr %s notrack; }
		}`, cluster, cluster), "nft", "-f", "-")
	})), "nft"},
	{"try-host-gw-nosnoop", "host-gw, bridge without multicast snooping", planned(trial(model.PathDirect, func(s *space.Space, _ int) error {
		return s.IP("link", "set", plan.DefaultBridge, "type", "bridge", "mcast_snooping", "0")
	})), ""},
	{"try-host-gw-nolearn", "host-gw, pods' ports without learning", planned(trial(model.PathDirect, func(s *space.Space, i int) error {
		port := model.HostLinkName("bench-"+nodeNames[i], "eth0")
		return s.Run("", "bridge", "link", "set", "dev", port, "learning", "off", "flood", "on")
	})), "bridge"},
	{"try-host-gw-gro", "host-gw, GRO on the nodes' ends of veths", planned(trial(model.PathDirect, func(s *space.Space, i int) error {
		for _, link := range []string{"uplink", model.HostLinkName("bench-"+nodeNames[i], "eth0")} {
			if err := s.Run("", "ethtool", "-K", link, "gro", "on"); err != nil {
				return err
			}
		}
		return nil
	})), "ethtool"},
	{"try-host-gw-forward", "host-gw with a forward chain that accepts pods by sets", planned(trial(model.PathDirect, func(s *space.Space, _ int) error {
		return s.Run(fmt.Sprintf(`table inet try {
			set pods4 { type ipv4_addr; flags interval; elements = { %s }; }
			chain forward { type filter hook forward priority filter; ip saddr @pods4 accept; ip daddr @pods4 accept; }
		}`, cluster), "nft", "-f", "-")
	})), "nft"},
}

func trial(p model.Path, more func(*space.Space, int) error) setting {
	return setting{path: p, attachment: model.AttachBridge, filter: true, more: more}
}
