package flannel_test

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/heddle-net/heddle/internal/dialect/flannel"
)

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// TestLeaseIsSpelledAsFlanneldDoes compares with values that flanneld 0.28's own types write.
func TestLeaseIsSpelledAsFlanneldDoes(t *testing.T) {
	for _, c := range []struct {
		lease flannel.Lease
		text  string
	}{
		{
			flannel.Lease{PublicIP: netip.MustParseAddr("192.168.0.4"), BackendType: "vxlan", VTEP: &flannel.VTEP{VNI: 1, MAC: "56:f7:01:02:03:04"}},
			`{"PublicIP":"192.168.0.4","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"56:f7:01:02:03:04"}}`,
		},
		{
			flannel.Lease{
				PublicIP: netip.MustParseAddr("192.168.0.4"), PublicIPv6: netip.MustParseAddr("2001:db8::4"), BackendType: "vxlan",
				VTEP: &flannel.VTEP{VNI: 1, MAC: "56:f7:01:02:03:04"}, VTEPv6: &flannel.VTEP{VNI: 1, MAC: "56:f7:01:02:03:06"},
			},
			`{"PublicIP":"192.168.0.4","PublicIPv6":"2001:db8::4","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"56:f7:01:02:03:04"},"BackendV6Data":{"VNI":1,"VtepMAC":"56:f7:01:02:03:06"}}`,
		},
		{
			flannel.Lease{PublicIP: netip.MustParseAddr("192.168.81.20"), BackendType: "host-gw"},
			`{"PublicIP":"192.168.81.20","PublicIPv6":null,"BackendType":"host-gw"}`,
		},
	} {
		text, err := c.lease.Marshal()
		if err != nil || string(text) != c.text {
			t.Errorf("got %s, %v; want %s", text, err, c.text)
		}
		lease, err := flannel.ParseLease([]byte(c.text))
		if err != nil || !reflect.DeepEqual(lease, c.lease) {
			t.Errorf("got %+v, %v; want %+v", lease, err, c.lease)
		}
	}
}

func TestLeaseFromAnotherHandIsReadWithCare(t *testing.T) {
	l, err := flannel.ParseLease([]byte(`{"PublicIP":"10.0.0.7","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0A:CC:01:02:03:04"},"BackendV6Data":null,"Future":{"a":1}}`))
	if err != nil || l.VTEP.MAC != "0a:cc:01:02:03:04" || l.VTEPv6 != nil {
		t.Errorf("got %+v, %v", l, err)
	}
	if l, err = flannel.ParseLease([]byte(`{"PublicIP":"10.0.0.7","BackendType":"wireguard","BackendData":{"PublicKey":"x"}}`)); err != nil || l.VTEP != nil || l.BackendType != "wireguard" {
		t.Errorf("got %+v, %v", l, err)
	}
	for text, want := range map[string]string{
		`{"PublicIP":"0.0.0.0","PublicIPv6":null}`:                                                                   "lease: PublicIP (empty): want an address by which the node is reached",
		`{"PublicIP":"x"}`:                                                                                           "lease: PublicIP x: want an address",
		`{"PublicIP":"127.0.0.1"}`:                                                                                   "lease: PublicIP 127.0.0.1: want a unicast IPv4 address",
		`{"PublicIP":"10.0.0.7","PublicIPv6":"10.0.0.8"}`:                                                            "lease: PublicIPv6 10.0.0.8: want a unicast IPv6 address",
		`{"PublicIP":"10.0.0.7","BackendType":"vxlan","BackendData":[]}`:                                             `lease: BackendData []: want {"VNI":1,"VtepMAC":"aa:bb:cc:dd:ee:ff"}`,
		`{"PublicIP":"10.0.0.7","BackendType":"vxlan","BackendData":{"VtepMAC":"no"}}`:                               "lease: BackendData.VtepMAC no: want a MAC",
		`{"PublicIP":"10.0.0.7","BackendType":"vxlan","BackendData":{"VtepMAC":"01:00:5e:0:0:1"}}`:                   "lease: BackendData.VtepMAC 01:00:5e:0:0:1: want a MAC",
		`{"PublicIP":"10.0.0.7","BackendType":"vxlan","BackendData":{"VtepMAC":"01:00:5e:00:00:01"}}`:                "lease: BackendData.VtepMAC 01:00:5e:00:00:01: want a unicast MAC of six hex pairs",
		`{"PublicIP":"10.0.0.7","BackendType":"vxlan","BackendData":{"VNI":16777216,"VtepMAC":"56:f7:01:02:03:04"}}`: "lease: BackendData.VNI 16777216: want 0..16777215",
	} {
		if _, err := flannel.ParseLease([]byte(text)); err == nil || err.Error() != want {
			t.Errorf("%s: got %v, want %s", text, err, want)
		}
	}
	if _, err := flannel.ParseLease([]byte(`{`)); err == nil || !strings.HasPrefix(err.Error(), "lease: ") {
		t.Errorf("got %v", err)
	}
}

func TestSubnetKeysAreSpelledAsFlanneldDoes(t *testing.T) {
	for key, want := range map[string][2]netip.Prefix{
		"10.5.1.0-24":                {prefix("10.5.1.0/24"), {}},
		"10.5.1.0-24&fd00:1::-64":    {prefix("10.5.1.0/24"), prefix("fd00:1::/64")},
		"10.5.1.64-26&fd00:1:2::-48": {prefix("10.5.1.64/26"), prefix("fd00:1:2::/48")},
	} {
		v4, v6, err := flannel.ParseSubnetKey(key)
		if err != nil || v4 != want[0] || v6 != want[1] {
			t.Errorf("%s: got %s %s %v", key, v4, v6, err)
		}
		if got := flannel.FormatSubnetKey(v4, v6); got != key {
			t.Errorf("got %s, want %s", got, key)
		}
	}
	for _, key := range []string{"", "10.5.1.0", "10.5.1.1-24", "10.5.1.0-33", "10.5.1.0-24&", "10.5.1.0-24&10.5.2.0-24", "fd00::-64", "10.5.1.0-24&fd00::-64&x", "10.5.1.0-+24", "10.5.1.0-0", "::ffff:10.5.1.0-120"} {
		if v4, v6, err := flannel.ParseSubnetKey(key); err == nil {
			t.Errorf("%q: got %s %s", key, v4, v6)
		}
	}
}

func TestSubnetEnvIsSpelledAsFlanneldDoes(t *testing.T) {
	env := flannel.SubnetEnv{
		Network: prefix("10.42.0.0/16"), Subnet: prefix("10.42.0.0/24"), IPv6Network: prefix("2001:cafe:42::/56"), IPv6Subnet: prefix("2001:cafe:42::/64"),
		MTU: 1450, IPMasq: true,
	}
	// As in Flannel's documentation of dual stack.
	const text = "FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.0.1/24\nFLANNEL_IPV6_NETWORK=2001:cafe:42::/56\nFLANNEL_IPV6_SUBNET=2001:cafe:42::1/64\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
	if got := string(env.Format()); got != text {
		t.Errorf("got\n%swant\n%s", got, text)
	}
	got, err := flannel.ParseSubnetEnv([]byte(text))
	if err != nil || got != env {
		t.Errorf("got %+v, %v", got, err)
	}
	v4 := flannel.SubnetEnv{Network: prefix("10.42.0.0/16"), Subnet: prefix("10.42.3.0/24"), MTU: 1500}
	if got, want := string(v4.Format()), "FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.3.1/24\nFLANNEL_MTU=1500\nFLANNEL_IPMASQ=false\n"; got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	for text, want := range map[string]string{
		"FLANNEL_MTU=big":                    "subnet.env: FLANNEL_MTU big: want bytes, 0..65535",
		"FLANNEL_IPMASQ=yes":                 "subnet.env: FLANNEL_IPMASQ yes: want true or false",
		"FLANNEL_NETWORK=fd00::/48":          "subnet.env: FLANNEL_NETWORK fd00::/48: want an IPv4 address with its prefix length",
		"FLANNEL_MTU=1\nFLANNEL_MTU=2":       "subnet.env: FLANNEL_MTU 2: want the variable once",
		"# fine\n\nnonsense":                 "subnet.env: line 3 nonsense: want NAME=value",
		"FLANNEL_IPV6_SUBNET=10.42.0.0/24\n": "subnet.env: FLANNEL_IPV6_SUBNET 10.42.0.0/24: want an IPv6 address with its prefix length",
	} {
		if _, err := flannel.ParseSubnetEnv([]byte(text)); err == nil || err.Error() != want {
			t.Errorf("%q: got %v, want %s", text, err, want)
		}
	}
}

func FuzzParseLease(f *testing.F) {
	f.Add([]byte(`{"PublicIP":"192.168.0.4","PublicIPv6":"2001:db8::4","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"56:f7:01:02:03:04"},"BackendV6Data":{"VNI":1,"VtepMAC":"56:f7:01:02:03:06"}}`))
	f.Add([]byte(`{"PublicIP":"192.168.81.20","PublicIPv6":null,"BackendType":"host-gw"}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		l, err := flannel.ParseLease(text)
		if err != nil {
			return
		}
		again, err := l.Marshal()
		if err != nil {
			t.Fatalf("%+v was read and cannot be written: %v", l, err)
		}
		if back, err := flannel.ParseLease(again); err != nil || !reflect.DeepEqual(back, l) {
			t.Errorf("%s: %+v, %v; want %+v", again, back, err, l)
		}
	})
}

func FuzzParseSubnetKey(f *testing.F) {
	f.Add("10.5.1.0-24")
	f.Add("10.5.1.0-24&fd00:1::-64")
	f.Fuzz(func(t *testing.T, key string) {
		v4, v6, err := flannel.ParseSubnetKey(key)
		if err != nil {
			return
		}
		b4, b6, err := flannel.ParseSubnetKey(flannel.FormatSubnetKey(v4, v6))
		if err != nil || b4 != v4 || b6 != v6 {
			t.Errorf("%q: %s %s became %s %s, %v", key, v4, v6, b4, b6, err)
		}
	})
}

func FuzzParseSubnetEnv(f *testing.F) {
	f.Add([]byte("FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.0.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		e, err := flannel.ParseSubnetEnv(text)
		if err != nil || !e.Network.IsValid() || !e.IPv6Network.IsValid() {
			return
		}
		if back, err := flannel.ParseSubnetEnv(e.Format()); err != nil || back != e {
			t.Errorf("%+v became %+v, %v", e, back, err)
		}
	})
}
