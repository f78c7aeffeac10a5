package cni

import (
	"fmt"
	"strings"
	"testing"
)

func TestWishesAreReadWhereverARuntimeSaysThem(t *testing.T) {
	for _, c := range []struct{ args, conf, want string }{
		{"", `{}`, "<nil>"},
		{"IP=10.0.0.7", `{}`, "[10.0.0.7] mac= pools=[] []"},
		{"IgnoreUnknown=1;IP=fd00::7,10.0.0.7;MAC=0A:00:00:00:00:01", `{}`, "[10.0.0.7 fd00::7] mac=0a:00:00:00:00:01 pools=[] []"},
		{"IP=;MAC=", `{"args":{"cni":{"ips":[]}},"ipam":{}}`, "<nil>"},
		{"", `{"args":{"cni":{"ips":["10.0.0.7/16"]}}}`, "[10.0.0.7] mac= pools=[] []"},
		{"IP=10.0.0.7", `{"runtimeConfig":{"ips":["10.0.0.7/24"],"mac":"0a:00:00:00:00:01"},"capabilities":{"ips":true,"mac":true}}`, "[10.0.0.7] mac=0a:00:00:00:00:01 pools=[] []"},
		{"", `{"ipam":{"type":"calico-ipam","ipv4_pools":["fast"],"ipv6_pools":["fd00::/48"]}}`, "[] mac= pools=[fast] [fd00::/48]"},

		{"IP=10.0.0.7", `{"args":{"cni":{"ips":["10.0.0.8"]}}}`, `network "heddle": address [10.0.0.7] in CNI_ARGS, [10.0.0.8] in args.cni.ips: want one and the same wherever it is asked for`},
		{"IP=10.0.0.7,10.0.0.8", `{}`, "environment: CNI_ARGS IP=10.0.0.7,10.0.0.8: want unicast addresses, at most one of each family, parted by a comma"},
		{"IP=224.0.0.1", `{}`, "unicast addresses"},
		{"", `{"runtimeConfig":{"mac":"01:00:5e:00:00:01"}}`, "unicast MAC"},
		{"", `{"runtimeConfig":{"ips":"10.0.0.7"}}`, "want a list"},
		{"", `{"ipam":{"type":"host-local"}}`, "ipam.type"},
		{"", `{"ipam":{"ranges":[[{"subnet":"10.0.0.0/8"}]]}}`, "ipam.ranges"},
	} {
		got := func() string {
			conf, err := parseConf([]byte(strings.Replace(c.conf, "{", `{"cniVersion":"1.1.0","name":"heddle",`, 1)))
			if c.conf == "{}" {
				conf, err = parseConf([]byte(`{"cniVersion":"1.1.0","name":"heddle"}`))
			}
			if err == nil {
				err = conf.refuse()
			}
			p, bad := parseArgs(c.args)
			if err == nil {
				err = bad
			}
			if err != nil {
				return err.Error()
			}
			w, err := conf.wishes(&p)
			switch {
			case err != nil:
				return err.Error()
			case w == nil:
				return "<nil>"
			}
			return fmt.Sprintf("%v mac=%s pools=%v %v", w.Addresses, w.MAC, w.Pools4, w.Pools6)
		}()
		if !strings.Contains(got, c.want) {
			t.Errorf("%s %s:\n%s\nwant %s", c.args, c.conf, got, c.want)
		}
	}
}
