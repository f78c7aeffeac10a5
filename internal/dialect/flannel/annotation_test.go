package flannel_test

import (
	"maps"
	"net/netip"
	"strings"
	"testing"

	"github.com/heddle-net/heddle/internal/dialect/flannel"
)

const note = "flannel.alpha.coreos.com/"

// TestAnnotationsAreThoseOfFlanneld: texts as flanneld 0.28 writes them for each backend.
func TestAnnotationsAreThoseOfFlanneld(t *testing.T) {
	v4, v6 := netip.MustParseAddr("192.168.0.4"), netip.MustParseAddr("fd00::4")
	for name, c := range map[string]struct {
		lease flannel.Lease
		want  map[string]string
	}{
		"vxlan": {
			flannel.Lease{PublicIP: v4, BackendType: "vxlan", VTEP: &flannel.VTEP{VNI: 1, MAC: "02:00:00:00:00:01"}},
			map[string]string{
				"kube-subnet-manager": "true", "backend-type": "vxlan", "public-ip": "192.168.0.4",
				"backend-data": `{"VNI":1,"VtepMAC":"02:00:00:00:00:01"}`,
			},
		},
		"vxlan, both families": {
			flannel.Lease{
				PublicIP: v4, PublicIPv6: v6, BackendType: "vxlan",
				VTEP: &flannel.VTEP{VNI: 1, MAC: "02:00:00:00:00:01"}, VTEPv6: &flannel.VTEP{VNI: 1, MAC: "02:00:00:00:00:02"},
			},
			map[string]string{
				"kube-subnet-manager": "true", "backend-type": "vxlan", "public-ip": "192.168.0.4", "public-ipv6": "fd00::4",
				"backend-data":    `{"VNI":1,"VtepMAC":"02:00:00:00:00:01"}`,
				"backend-v6-data": `{"VNI":1,"VtepMAC":"02:00:00:00:00:02"}`,
			},
		},
		"host-gw": {
			flannel.Lease{PublicIP: v4, PublicIPv6: v6, BackendType: "host-gw"},
			map[string]string{
				"kube-subnet-manager": "true", "backend-type": "host-gw", "public-ip": "192.168.0.4", "public-ipv6": "fd00::4",
				"backend-data": "null", "backend-v6-data": "null",
			},
		},
		"vxlan, device not there yet": {flannel.Lease{PublicIP: v4, BackendType: "vxlan"}, nil},
	} {
		got, err := c.lease.Annotations()
		want := map[string]string{}
		for k, v := range c.want {
			want[note+k] = v
		}
		if err != nil || !maps.Equal(got, want) {
			t.Errorf("%s: got %v, %v; want %v", name, got, err, want)
		}
	}
	if a, err := (flannel.Lease{BackendType: "vxlan"}).Annotations(); err == nil {
		t.Errorf("a lease without an address became %v", a)
	}
}

func TestAnnotationsOfNobodyAreNoNode(t *testing.T) {
	for name, a := range map[string]map[string]string{
		"none":         nil,
		"not managed":  {note + "public-ip": "192.168.0.4", note + "backend-type": "vxlan"},
		"managed: yes": {note + "kube-subnet-manager": "yes", note + "public-ip": "192.168.0.4"},
	} {
		if l, is, err := flannel.ParseAnnotations(a); is || err != nil {
			t.Errorf("%s: %+v, %v, %v", name, l, is, err)
		}
	}
	for name, a := range map[string]map[string]string{
		"no address":    {},
		"other family":  {note + "public-ip": "fd00::1"},
		"no address 6":  {note + "public-ipv6": "192.168.0.4"},
		"multicast":     {note + "public-ip": "224.0.0.1"},
		"broken data":   {note + "public-ip": "192.168.0.4", note + "backend-type": "vxlan", note + "backend-data": "{"},
		"multicast MAC": {note + "public-ip": "192.168.0.4", note + "backend-type": "vxlan", note + "backend-data": `{"VtepMAC":"01:00:00:00:00:00"}`},
		"too large":     {note + "public-ip": "192.168.0.4", note + "backend-data": strings.Repeat(" ", 1<<20)},
	} {
		a[note+"kube-subnet-manager"] = "true"
		if l, is, err := flannel.ParseAnnotations(a); is || err == nil {
			t.Errorf("%s was taken: %+v", name, l)
		}
	}
}

// FuzzParseAnnotations: what is taken is written and read again as the same.
func FuzzParseAnnotations(f *testing.F) {
	f.Add("true", "vxlan", `{"VNI":1,"VtepMAC":"02:00:00:00:00:01"}`, "null", "192.168.0.4", "")
	f.Add("true", "vxlan", `{"VNI":1,"VtepMAC":"02:00:00:00:00:01"}`, `{"VNI":1,"VtepMAC":"02:00:00:00:00:02"}`, "192.168.0.4", "fd00::1")
	f.Add("true", "host-gw", "null", "", "192.168.0.4", "")
	f.Add("true", "wireguard", `{"PublicKey":"x"}`, "", "192.168.0.4", "::")
	f.Fuzz(func(t *testing.T, managed, backend, data, data6, ip, ip6 string) {
		l, is, err := flannel.ParseAnnotations(map[string]string{
			note + "kube-subnet-manager": managed, note + "backend-type": backend, note + "backend-data": data,
			note + "backend-v6-data": data6, note + "public-ip": ip, note + "public-ipv6": ip6,
		})
		if is != (managed == "true" && err == nil) {
			t.Fatalf("is %v with %v", is, err)
		}
		if !is {
			return
		}
		a, err := l.Annotations()
		if err != nil {
			t.Fatalf("%+v was read and cannot be written: %v", l, err)
		}
		if a == nil {
			return
		}
		again, is, err := flannel.ParseAnnotations(a)
		if err != nil || !is || (again.VTEP == nil) != (l.VTEP == nil || !l.PublicIP.IsValid()) || again.BackendType != l.BackendType {
			t.Fatalf("%+v was written as %v and read as %+v, %v", l, a, again, err)
		}
	})
}
