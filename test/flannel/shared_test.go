package flannel

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/heddle-net/heddle/internal/agent"
	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/test/harness"
)

func netConf(backend string, dual bool) string {
	v6 := ""
	if dual {
		v6 = `"EnableIPv6":true,"IPv6Network":"fd00:128::/48",`
	}
	return fmt.Sprintf(`{"Network":"10.128.0.0/16",%s"Backend":{"Type":%q}}`, v6, backend)
}

// shared is a network of one agent and one flanneld, each with a pod.
type shared struct {
	*network
	a          *node
	b          *flanneld
	podA, podB string
	stopB      func() // ends B's flanneld; its devices and routes stay
	atA, atB   []netip.Addr
}

func newShared(t *testing.T, backend string, dual bool) *shared {
	t.Helper()
	n := newNetwork(t)
	s := &shared{network: n, a: newNode(n, 4, dual)}
	if out, err := s.a.network(netConf(backend, dual), "set", "-"); err != nil {
		t.Fatal(out, err)
	}
	s.b = newFlanneld(n, backend, 16, dual)
	s.podB, s.atB = s.b.pod(2)
	s.stopB = s.b.follow()
	s.a.start()
	s.podA, s.atA = s.a.pod(t)
	return s
}

// talk proves that packets pass both ways, and that nobody hides the pods' addresses from each other.
func (s *shared) talk(t *testing.T) {
	t.Helper()
	for i := range s.atA {
		answers(t, s.podA, s.atB[i])
		answers(t, s.podB, s.atA[i])
		if from := carries(t, s.podA, s.podB, s.atB[i]); from != s.atA[i] {
			t.Errorf("pod B sees %s, want pod A's own %s", from, s.atA[i])
		}
		if from := carries(t, s.podB, s.podA, s.atA[i]); from != s.atB[i] {
			t.Errorf("pod A sees %s, want pod B's own %s", from, s.atB[i])
		}
	}
}

func TestAgentAndFlanneldShareANetwork(t *testing.T) {
	for _, c := range []struct {
		name, backend string
		dual          bool
		path          model.Path
		mtu           int
	}{
		{"vxlan", "vxlan", false, model.PathVXLAN, 1450},
		{"vxlan dual stack", "vxlan", true, model.PathVXLAN, 1430}, // IPv6 outside takes 20 bytes more
		{"host-gw dual stack", "host-gw", true, model.PathDirect, 1500},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newShared(t, c.backend, c.dual)
			s.talk(t)
			s.peers(t, c.path)
			s.subnetFile(t, c.mtu)
			outside := []netip.Addr{netip.MustParseAddr(segment4), netip.MustParseAddr(segment6)}
			for i := range s.atA {
				st, err := s.a.status()
				must(t, err)
				want := []netip.Addr{st.Address4, st.Address6}[i]
				if from := carries(t, s.podA, s.ns, outside[i]); from != want {
					t.Errorf("outside sees %s, want the host's %s: pods are masqueraded unless the agent is told otherwise", from, want)
				}
			}
		})
	}
}

// peers wants the flanneld as A's one peer per family, up, and no problem.
func (s *shared) peers(t *testing.T, path model.Path) {
	t.Helper()
	var st agent.Status
	harness.Wait(t, patience, "status without problems", func() bool {
		var err error
		st, err = s.a.status()
		return err == nil && len(st.Problems) == 0 && len(st.Peers) == len(s.atA)
	})
	for _, p := range st.Peers {
		if p.Node != "flannel-192-168-77-16" || p.State != agent.PeerUp || p.Path != path {
			t.Errorf("peer %+v, want flannel-192-168-77-16 up by %s", p, path)
		}
	}
}

// subnetFile wants A's subnet.env to say what flanneld would.
func (s *shared) subnetFile(t *testing.T, mtu int) {
	t.Helper()
	b4 := s.a.block(t, model.IPv4)
	want := fmt.Sprintf("FLANNEL_NETWORK=10.128.0.0/16\nFLANNEL_SUBNET=%s/24\n", nth(b4, 1))
	if len(s.atA) > 1 {
		want += fmt.Sprintf("FLANNEL_IPV6_NETWORK=fd00:128::/48\nFLANNEL_IPV6_SUBNET=%s/64\n", nth(s.a.block(t, model.IPv6), 1))
	}
	want += fmt.Sprintf("FLANNEL_MTU=%d\nFLANNEL_IPMASQ=true\n", mtu)
	if got, err := os.ReadFile(s.a.file("subnet.env")); err != nil || string(got) != want {
		t.Errorf("subnet.env\n%s%v\nwant\n%s", got, err, want)
	}
}

func TestAgentFollowsWhatAFlanneldWrites(t *testing.T) {
	s := newShared(t, "vxlan", true)
	s.talk(t)

	// A new life of flanneld finds another MAC on flannel.1, as after a reboot, and publishes it.
	s.stopB()
	old := s.b.mac
	for i, mac := range []string{"02:00:00:00:77:04", "02:00:00:00:77:06"} {
		ip(t, s.b.ns, "link set "+vtepNames[i]+" address "+mac)
	}
	s.b.readMACs()
	s.b.publish()
	s.b.follow()
	harness.Wait(t, patience, "A has the new MACs alone", func() bool {
		k := s.a.kernel(t)
		return strings.Contains(k, s.b.mac[0]) && strings.Contains(k, s.b.mac[1]) && !strings.Contains(k, old[0]) && !strings.Contains(k, old[1])
	})
	s.talk(t)

	s.b.leave(t)
	gone := []string{s.b.subnet[0].String(), s.b.subnet[1].String(), s.b.subnet[0].Addr().String() + " ", s.b.mac[0], s.b.mac[1]}
	harness.Wait(t, patience, "nothing of B is in A's kernel", func() bool {
		k := s.a.kernel(t)
		for _, g := range gone {
			if strings.Contains(k, g) {
				return false
			}
		}
		return true
	})
	if err := ping(s.podA, s.atB[0]); err == nil {
		t.Error("pod B still answers")
	}
}

func TestRestartedAgentKeepsItsPlaceInTheSharedNetwork(t *testing.T) {
	s := newShared(t, "vxlan", true)
	s.talk(t)
	before := s.subnets()
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		s.a.stop(sig)
		for i := range s.atA { // flanneld's peers and our pods need no agent
			must(t, ping(s.podB, s.atA[i]))
		}
		s.a.start()
		s.talk(t)
		if after := s.subnets(); fmt.Sprint(after) != fmt.Sprint(before) {
			t.Fatalf("after a restart etcd has\n%v\nwant\n%v", after, before)
		}
	}
	_, addrs := s.a.pod(t)
	if addrs[0] == s.atA[0] || addrs[1] == s.atA[1] {
		t.Errorf("a new pod got %v of %v", addrs, s.atA)
	}
}

func TestLostLeaseIsClaimedAgainWithTheSameSubnet(t *testing.T) {
	s := newShared(t, "vxlan", true)
	s.talk(t)
	before := s.subnets()
	_, mine := s.ownKey(t)
	_, err := s.etcd.Delete(t.Context(), prefix+"/subnets/"+mine)
	must(t, err)
	harness.Wait(t, patience, "the lease is there again", func() bool { return s.subnets()[mine] == before[mine] })
	s.talk(t)
	if after := s.subnets(); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Fatalf("etcd has\n%v\nwant\n%v", after, before)
	}
	lease, _ := s.ownKey(t)
	if lease < 3600 || lease > 24*3600 {
		t.Errorf("the lease lives %d s more, want a day", lease)
	}
}

// ownKey is the key of A's lease, and how many seconds it lives.
func (s *shared) ownKey(t *testing.T) (ttl int64, key string) {
	t.Helper()
	key = dashed(s.a.block(t, model.IPv4)) + "&" + dashed(s.a.block(t, model.IPv6))
	resp, err := s.etcd.Get(t.Context(), prefix+"/subnets/"+key)
	must(t, err)
	if len(resp.Kvs) != 1 {
		t.Fatalf("no key %s in %v", key, s.subnets())
	}
	live, err := s.etcd.TimeToLive(t.Context(), clientv3.LeaseID(resp.Kvs[0].Lease))
	must(t, err)
	return live.TTL, key
}

func TestNetworkSetWritesFlannelsConfigAsGiven(t *testing.T) {
	n := newNetwork(t)
	a := newNode(n, 4, false)
	good := netConf("vxlan", false)
	if _, err := a.network(good, "set", "-"); err != nil {
		t.Fatal(err)
	}
	if got := n.config(); got != good {
		t.Fatalf("config is %q, want %q", got, good)
	}
	for name, c := range map[string]struct{ conf, flag, want string }{
		"a backend that is none": {`{"Network":"10.128.0.0/16","Backend":{"Type":"pigeon"}}`, "", "pigeon"},
		"no JSON":                {`{"Network"`, "", "net-conf"},
		"another's flag":         {good, "--ip-masq=false", "--ip-masq"},
	} {
		args := []string{"set", "-"}
		if c.flag != "" {
			args = append(args, c.flag)
		}
		if _, err := a.network(c.conf, args...); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want one that names %s", name, err, c.want)
		}
		if got := n.config(); got != good {
			t.Fatalf("%s: config is %q, want %q", name, got, good)
		}
	}
	out, err := a.network("", "show")
	if err != nil || !strings.Contains(out, `"10.128.0.0/16"`) {
		t.Errorf("show: %s, %v", out, err)
	}
}
