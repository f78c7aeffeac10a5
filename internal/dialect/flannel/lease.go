package flannel

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/heddle-net/heddle/internal/model"
)

// Keys of Flannel's etcd layout below its prefix (default /coreos.com/network): the configuration, and one
// key for each lease, "subnets/" and a FormatSubnetKey.
const (
	DefaultPrefix = "/coreos.com/network"
	ConfigKey     = "config"
	SubnetsKey    = "subnets"
)

const maxLease = 16 << 10

// Lease is the value of a subnet's key: how its node is reached.
type Lease struct {
	PublicIP    netip.Addr // zero: none
	PublicIPv6  netip.Addr // zero: none
	BackendType string     // "vxlan", "host-gw", …; as another flanneld may have written it
	// VTEP and VTEPv6 are of the vxlan devices with IPv4 and IPv6 outside; nil for none and for other types.
	VTEP, VTEPv6 *VTEP
}

// VTEP is the backend data of a vxlan lease.
type VTEP struct {
	VNI int
	MAC string // aa:bb:cc:dd:ee:ff
}

// The form on the wire, field for field that of flanneld 0.28.
type wireLease struct {
	PublicIP      string
	PublicIPv6    *string
	BackendType   string          `json:",omitempty"`
	BackendData   json.RawMessage `json:",omitempty"`
	BackendV6Data json.RawMessage `json:",omitempty"`
}

type wireVTEP struct {
	VNI     uint32
	VtepMAC string
}

// Marshal writes the value as flanneld does, or says which field is wrong.
func (l Lease) Marshal() ([]byte, error) {
	if err := l.validate(); err != nil {
		return nil, err
	}
	w := wireLease{PublicIP: "0.0.0.0", BackendType: l.BackendType}
	if l.PublicIP.IsValid() {
		w.PublicIP = l.PublicIP.String()
	}
	if l.PublicIPv6.IsValid() {
		s := l.PublicIPv6.String()
		w.PublicIPv6 = &s
	}
	for _, d := range []struct {
		v  *VTEP
		to *json.RawMessage
	}{{l.VTEP, &w.BackendData}, {l.VTEPv6, &w.BackendV6Data}} {
		if d.v == nil {
			continue
		}
		raw, err := json.Marshal(wireVTEP{uint32(d.v.VNI), d.v.MAC})
		if err != nil {
			return nil, err
		}
		*d.to = raw
	}
	return json.Marshal(w)
}

// ParseLease reads a value that anybody may have written.
func ParseLease(text []byte) (Lease, error) {
	var l Lease
	if len(text) > maxLease {
		return l, leaseError("size", fmt.Sprint(len(text)), fmt.Sprintf("at most %d bytes", maxLease))
	}
	var w wireLease
	if err := json.Unmarshal(text, &w); err != nil {
		return l, fmt.Errorf("lease: %w", err)
	}
	l.BackendType = w.BackendType
	var err error
	if l.PublicIP, err = leaseAddr("PublicIP", w.PublicIP); err != nil {
		return Lease{}, err
	}
	if w.PublicIPv6 != nil {
		if l.PublicIPv6, err = leaseAddr("PublicIPv6", *w.PublicIPv6); err != nil {
			return Lease{}, err
		}
	}
	if l.BackendType == "vxlan" {
		if l.VTEP, err = leaseVTEP("BackendData", w.BackendData); err != nil {
			return Lease{}, err
		}
		if l.VTEPv6, err = leaseVTEP("BackendV6Data", w.BackendV6Data); err != nil {
			return Lease{}, err
		}
	}
	if err := l.validate(); err != nil {
		return Lease{}, err
	}
	return l, nil
}

// leaseAddr reads an address; Flannel writes 0.0.0.0 and :: for none.
func leaseAddr(field, s string) (netip.Addr, error) {
	if s == "" {
		return netip.Addr{}, nil
	}
	a, err := netip.ParseAddr(s)
	if err != nil {
		return netip.Addr{}, leaseError(field, s, "an address")
	}
	if a.IsUnspecified() {
		return netip.Addr{}, nil
	}
	return a, nil
}

func leaseVTEP(field string, raw json.RawMessage) (*VTEP, error) {
	if len(raw) == 0 || string(raw) == "null" {
		return nil, nil
	}
	var w wireVTEP
	if err := json.Unmarshal(raw, &w); err != nil {
		return nil, leaseError(field, string(raw), `{"VNI":1,"VtepMAC":"aa:bb:cc:dd:ee:ff"}`)
	}
	if w.VtepMAC == "" {
		return nil, nil // the device is not there yet
	}
	m, err := net.ParseMAC(w.VtepMAC)
	if err != nil {
		return nil, leaseError(field+".VtepMAC", w.VtepMAC, "a MAC")
	}
	return &VTEP{int(w.VNI), m.String()}, nil
}

func (l Lease) validate() error {
	if !l.PublicIP.IsValid() && !l.PublicIPv6.IsValid() {
		return leaseError("PublicIP", "", "an address by which the node is reached")
	}
	for _, a := range []struct {
		field string
		addr  netip.Addr
		fam   model.Family
	}{{"PublicIP", l.PublicIP, model.IPv4}, {"PublicIPv6", l.PublicIPv6, model.IPv6}} {
		x := a.addr
		if x.IsValid() && (model.FamilyOf(x) != a.fam || x.Is4In6() || x.Zone() != "" || x.IsUnspecified() || x.IsLoopback() || x.IsMulticast()) {
			return leaseError(a.field, x.String(), "a unicast "+a.fam.String()+" address")
		}
	}
	for _, d := range []struct {
		field string
		v     *VTEP
	}{{"BackendData", l.VTEP}, {"BackendV6Data", l.VTEPv6}} {
		switch {
		case d.v == nil:
		case l.BackendType != "vxlan":
			return leaseError(d.field, d.v.MAC, "nothing with BackendType "+short(l.BackendType))
		case !model.ValidMAC(d.v.MAC):
			return leaseError(d.field+".VtepMAC", d.v.MAC, "a unicast MAC of six hex pairs")
		case d.v.VNI < 0 || d.v.VNI > 1<<24-1:
			return leaseError(d.field+".VNI", fmt.Sprint(d.v.VNI), "0..16777215")
		}
	}
	return nil
}

func leaseError(field, value, want string) error {
	return &model.FieldError{Noun: "lease", Field: field, Value: short(value), Want: want}
}

// FormatSubnetKey spells a lease's key: 10.5.1.0-24, or 10.5.1.0-24&fd00:1::-64 with an IPv6 block.
func FormatSubnetKey(v4, v6 netip.Prefix) string {
	key := dashed(v4)
	if v6.IsValid() {
		key += "&" + dashed(v6)
	}
	return key
}

// ParseSubnetKey reads the last element of a lease's key. The IPv6 block is zero where there is none.
func ParseSubnetKey(key string) (v4, v6 netip.Prefix, err error) {
	first, second, dual := strings.Cut(key, "&")
	v4, ok := undashed(first, model.IPv4)
	if ok && dual {
		v6, ok = undashed(second, model.IPv6)
	}
	if !ok {
		return netip.Prefix{}, netip.Prefix{}, &model.FieldError{Noun: "lease", Field: "key", Value: short(key), Want: "a block such as 10.5.1.0-24 or 10.5.1.0-24&fd00:1::-64"}
	}
	return v4, v6, nil
}

func dashed(p netip.Prefix) string { return p.Addr().String() + "-" + strconv.Itoa(p.Bits()) }

func undashed(s string, f model.Family) (netip.Prefix, bool) {
	addr, bits, ok := strings.Cut(s, "-")
	if !ok {
		return netip.Prefix{}, false
	}
	p, err := netip.ParsePrefix(addr + "/" + bits)
	if err != nil || p.Addr().Is4In6() || model.FamilyOf(p.Addr()) != f || p != p.Masked() || p.Bits() == 0 {
		return netip.Prefix{}, false
	}
	return p, true
}
