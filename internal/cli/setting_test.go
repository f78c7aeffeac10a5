package cli

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/heddle-net/heddle/internal/model"
)

func pool(name, spec string) string {
	return "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: " + name + "}\nspec: " + spec + "\n"
}

func TestSettingsAreFiledWherePlansLook(t *testing.T) {
	c := newTerminal(t)
	file := c.file("a.yaml", pool("a", "{cidr: 10.1.0.0/16, vxlanMode: Always, natOutgoing: true, nodeSelector: has(rack)}")+
		"---\napiVersion: projectcalico.org/v3\nkind: BGPPeer\nmetadata: {name: rack}\nspec: {nodeSelector: has(rack), peerIP: '192.0.2.1:1179', asNumber: 65000, filters: [in, out]}\n"+
		"---\napiVersion: projectcalico.org/v3\nkind: BGPPeer\nmetadata: {name: all}\nspec: {peerSelector: has(rr)}\n"+
		"---\napiVersion: projectcalico.org/v3\nkind: BGPConfiguration\nmetadata: {name: default}\nspec: {nodeToNodeMeshEnabled: false}\n")
	c.says("apply -f "+file, "ippool/a created\nbgppeer/rack created\nbgppeer/all created\nbgpconfiguration/default created\n")
	c.says("apply -f "+file, "ippool/a unchanged\nbgppeer/rack unchanged\nbgppeer/all unchanged\nbgpconfiguration/default unchanged\n")
	items, _, err := c.store.List(t.Context(), model.KindSetting)
	if err != nil || len(items) != 4 {
		t.Fatalf("settings %v, %v", items, err)
	}
	c.says("get ippools", "NAME   CIDR          SELECTOR\na      10.1.0.0/16   has(rack)\n")
	c.says("get ipp a -o wide", "NAME   CIDR          NAT    IPIPMODE   VXLANMODE   DISABLED   DISABLEBGPEXPORT   SELECTOR    APIVERSION\n"+
		"a      10.1.0.0/16   true   Never      Always      false      false              has(rack)   projectcalico.org/v3\n")
	c.says("get bgppeers", "NAME   PEERIP           NODE        ASN\nall    has(rr)          (global)    (global)\nrack   192.0.2.1:1179   has(rack)   65000\n")
	c.says("get bgpconfig", "NAME      MESHENABLED   ASNUMBER\ndefault   false         (global)\n")
	if out := c.types("get bgpp rack -o yaml"); !strings.Contains(out, "peerIP: 192.0.2.1:1179") {
		t.Error(out)
	}
	c.says("delete bgppeer rack", "bgppeer \"rack\" deleted\n")
	c.says("delete -f "+file+" --ignore-not-found", "ippool \"a\" deleted\nbgppeer \"all\" deleted\nbgpconfiguration \"default\" deleted\n")
}

func TestPoolsInUseStayAsTheyAre(t *testing.T) {
	c := newTerminal(t)
	c.put(&model.Pool{Name: "flannel", CIDR: netip.MustParsePrefix("10.244.0.0/16"), BlockSize: 24, Path: model.PathVXLAN, Encap: model.EncapAlways, VXLAN: model.VXLAN{VNI: 1, Port: 8472}})
	refused := func(spec, want string) {
		t.Helper()
		c.fails("apply -f "+c.file("bad.yaml", pool("a", spec)), want)
	}
	c.says("apply -f "+c.file("a.yaml", pool("a", "{cidr: 10.1.0.0/16}")+"---\n"+pool("b", "{cidr: 10.2.0.0/16}")), "ippool/a created\nippool/b created\n")
	c.put(&model.Block{CIDR: netip.MustParsePrefix("10.1.200.0/26"), Pool: "a", Node: "n1"})
	refused("{cidr: 10.2.128.0/17}", "IPPool a: spec.cidr 10.2.128.0/17: want a range apart from IPPool b 10.2.0.0/16")
	refused("{cidr: 10.240.0.0/12}", "IPPool a: spec.cidr 10.240.0.0/12: want a range apart from pool flannel 10.244.0.0/16 of heddle network show")
	refused("{cidr: 10.1.0.0/17}", "IPPool a: spec.cidr 10.1.0.0/17: want a range with block 10.1.200.0/26 in it, which node n1 has; set disabled: true and drain its workloads first")
	refused("{cidr: 10.1.0.0/16, blockSize: 24}", "IPPool a: spec.blockSize 24: want 26 as it is: the size of blocks cannot change; make another pool, and set disabled: true on this one")
	refused("{cidr: 10.1.0.0/16, vxlanMode: Always}", "IPPool a: spec.vxlanMode Always: want Never, or the VXLAN network of pool flannel in the FelixConfiguration: vxlanVNI 1 and vxlanPort 8472; a node has one")
	c.fails("apply -f "+c.file("f.yaml", pool("flannel", "{cidr: 10.9.0.0/16}")), "IPPool flannel: metadata.name flannel: want a name that no pool of heddle network show has")
	c.fails("apply -f "+c.file("t.yaml", pool("x1", "{cidr: 10.8.0.0/16}")+"---\n"+pool("x2", "{cidr: 10.8.0.0/24}")), "IPPool x1: spec.cidr 10.8.0.0/16: want a range apart from IPPool x2 10.8.0.0/24")
	c.fails("delete ippool a", "IPPool a is in use: node n1 has block 10.1.200.0/26; set disabled: true and drain its workloads first")
	// The very range of a pool that is filed is no overlap: it says how that one is carried.
	c.says("apply -f "+c.file("g.yaml", pool("g", "{cidr: 10.244.0.0/16, ipipMode: Always}")), "ippool/g created\n")
	// What is asked for instead is possible.
	c.says("apply -f "+c.file("d.yaml", pool("a", "{cidr: 10.1.192.0/18, disabled: true}")), "ippool/a configured\n")
	if err := c.store.Delete(t.Context(), model.KindBlock, "10.1.200.0-26", -1); err != nil {
		t.Fatal(err)
	}
	c.says("delete ippool a", "ippool \"a\" deleted\n")
	// The same pool by its other name overlaps itself as little as by this one.
	c.says("apply -f "+c.file("o.yaml", strings.Replace(pool("b", "{cidr: 10.2.0.0/15}"), "projectcalico.org/v3", "crd.projectcalico.org/v1", 1)), "ippool.crd.projectcalico.org/b created\n")
}
