package ipam

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"

	"github.com/heddle-net/heddle/internal/model"
)

// Annotations of a pod by which people ask for addresses, as Calico spells them. Lists are JSON.
const (
	annotations          = "cni.projectcalico.org/"
	AnnotationAddresses  = annotations + "ipAddrs"     // ["10.0.0.7","fd00::7"]
	AnnotationPools4     = annotations + "ipv4pools"   // ["fast"] or ["10.0.0.0/16"]
	AnnotationPools6     = annotations + "ipv6pools"   //
	AnnotationMAC        = annotations + "hwAddr"      // "1c:0c:0a:c0:ff:ee"
	AnnotationFloating   = annotations + "floatingIPs" // ["192.0.2.7"]
	annotationNoIPAM     = annotations + "ipAddrsNoIpam"
	maxAnnotation        = 4 << 10 // bytes of one value
	maxAnnotatedElements = 64
)

// Annotated reads what a pod's annotations ask for; nil when that is nothing. What cannot be understood is
// named in Invalid.
func Annotated(all map[string]string) *model.Wishes {
	w := &model.Wishes{MAC: strings.ToLower(all[AnnotationMAC])}
	invalid := func(key, want string) {
		if w.Invalid == "" {
			value := all[key]
			if len(value) > 128 {
				value = value[:128] + "…"
			}
			w.Invalid = (&model.FieldError{Noun: "annotation", Field: key, Value: fmt.Sprintf("%q", value), Want: want}).Error()
		}
	}
	list := func(key string) (out []string) {
		text := all[key]
		if text == "" {
			return nil
		}
		if len(text) > maxAnnotation || json.Unmarshal([]byte(text), &out) != nil || len(out) > maxAnnotatedElements {
			invalid(key, fmt.Sprintf("a JSON list of at most %d texts", maxAnnotatedElements))
			return nil
		}
		return out
	}
	addrs := func(key string) (out []netip.Addr) {
		for _, text := range list(key) {
			a, err := netip.ParseAddr(text)
			if err != nil {
				invalid(key, `a JSON list of addresses, such as ["10.0.0.7"]`)
				return nil
			}
			out = append(out, a.Unmap())
		}
		return out
	}
	w.Addresses, w.Floating = addrs(AnnotationAddresses), addrs(AnnotationFloating)
	w.Pools4, w.Pools6 = list(AnnotationPools4), list(AnnotationPools6)
	if w.MAC != "" && !model.ValidMAC(w.MAC) {
		invalid(AnnotationMAC, "a unicast MAC such as 1c:0c:0a:c0:ff:ee")
		w.MAC = ""
	}
	if all[annotationNoIPAM] != "" {
		invalid(annotationNoIPAM, "it to be absent: heddle routes addresses of its pools only")
	}
	if w.Invalid == "" && w.Addresses == nil && w.Floating == nil && w.Pools4 == nil && w.Pools6 == nil && w.MAC == "" {
		return nil
	}
	if err := w.Validate(); err != nil {
		invalid(AnnotationAddresses, "unicast addresses, at most one of each family")
	}
	return w
}
