package cni

import (
	"encoding/json"
	"net"
	"net/netip"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
)

// result is ADD's answer in the configuration's version: the host's end of the veth, the interface in
// the container, and addresses that point to the latter (spec 1.1.0, "ADD Success").
func result(c *conf, a Attached, netns string) ([]byte, *Error) {
	w := a.Workload
	r := &types100.Result{
		CNIVersion: types100.ImplementedSpecVersion,
		Interfaces: []*types100.Interface{
			{Name: w.HostLink, Mtu: w.MTU},
			{Name: w.IfName, Mac: w.MAC, Mtu: w.MTU, Sandbox: netns},
		},
		DNS: c.DNS,
	}
	gateway := map[bool]netip.Addr{} // by Is4
	for _, gw := range a.Gateways {
		gateway[gw.Is4()] = gw
	}
	for _, p := range a.Addresses {
		ip := &types100.IPConfig{Interface: types100.Int(1), Address: ipNet(p)}
		if gw := gateway[p.Addr().Is4()]; gw.IsValid() {
			ip.Gateway = gw.AsSlice()
		}
		r.IPs = append(r.IPs, ip)
	}
	for _, p := range a.Routes {
		route := &types.Route{Dst: ipNet(p)}
		if gw := gateway[p.Addr().Is4()]; gw.IsValid() {
			route.GW = gw.AsSlice()
		}
		r.Routes = append(r.Routes, route)
	}
	if !c.atLeast("1.1.0") {
		for _, i := range r.Interfaces {
			i.Mtu = 0 // came with 1.1.0
		}
	}
	versioned, err := r.GetAsVersion(c.CNIVersion)
	if err != nil {
		return nil, Errorf(CodeIncompatibleVersion, "%v", err)
	}
	return indented(versioned)
}

// ipNet keeps the host bits: 10.244.1.2/24.
func ipNet(p netip.Prefix) net.IPNet {
	return net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// errorResult is the specification's error object.
func errorResult(version string, e *Error) []byte {
	out, err := indented(struct {
		CNIVersion string `json:"cniVersion"`
		Code       uint   `json:"code"`
		Msg        string `json:"msg"`
		Details    string `json:"details,omitempty"`
	}{version, e.Code, e.Msg, e.Details})
	if err != nil { // strings and a number always encode
		panic(err)
	}
	return out
}

func indented(v any) ([]byte, *Error) {
	out, err := json.MarshalIndent(v, "", "    ")
	if err != nil {
		return nil, Errorf(CodeInternal, "result: %v", err)
	}
	return append(out, '\n'), nil
}
