package flannel

import (
	"encoding/json"
	"fmt"

	"github.com/heddle-net/heddle/internal/model"
)

// Annotations of a Node object by which flanneld tells how it is reached, with its default prefix. Whoever
// has SubnetManager "true" is a node of the network to it.
const (
	annotationPrefix = "flannel.alpha.coreos.com/"

	SubnetManagerAnnotation = annotationPrefix + "kube-subnet-manager"
	BackendTypeAnnotation   = annotationPrefix + "backend-type"
	BackendDataAnnotation   = annotationPrefix + "backend-data"
	BackendV6DataAnnotation = annotationPrefix + "backend-v6-data"
	PublicIPAnnotation      = annotationPrefix + "public-ip"
	PublicIPv6Annotation    = annotationPrefix + "public-ipv6"
)

// AnnotationKeys are the annotations that a lease is made of.
func AnnotationKeys() []string {
	return []string{
		SubnetManagerAnnotation, BackendTypeAnnotation, BackendDataAnnotation, BackendV6DataAnnotation,
		PublicIPAnnotation, PublicIPv6Annotation,
	}
}

// Annotations writes the lease as flanneld does: what is not there has no annotation. A vxlan lease without
// any device has none at all, as no flanneld could send to it.
func (l Lease) Annotations() (map[string]string, error) {
	if err := l.validate(); err != nil {
		return nil, err
	}
	vxlan := l.BackendType == "vxlan"
	if vxlan && l.VTEP == nil && l.VTEPv6 == nil {
		return nil, nil
	}
	a := map[string]string{SubnetManagerAnnotation: "true", BackendTypeAnnotation: l.BackendType}
	for _, f := range []struct {
		vtep     *VTEP
		public   string
		has      bool
		key, dat string
	}{
		{l.VTEP, l.PublicIP.String(), l.PublicIP.IsValid(), PublicIPAnnotation, BackendDataAnnotation},
		{l.VTEPv6, l.PublicIPv6.String(), l.PublicIPv6.IsValid(), PublicIPv6Annotation, BackendV6DataAnnotation},
	} {
		if !f.has || vxlan && f.vtep == nil {
			continue
		}
		a[f.key], a[f.dat] = f.public, "null"
		if f.vtep != nil {
			text, err := json.Marshal(wireVTEP{uint32(f.vtep.VNI), f.vtep.MAC})
			if err != nil {
				return nil, err
			}
			a[f.dat] = string(text)
		}
	}
	return a, nil
}

// ParseAnnotations reads what anybody may have annotated; false when that is no node of Flannel's.
func ParseAnnotations(a map[string]string) (Lease, bool, error) {
	if a[SubnetManagerAnnotation] != "true" {
		return Lease{}, false, nil
	}
	size := 0
	for _, key := range AnnotationKeys() {
		size += len(a[key])
	}
	if size > maxLease {
		return Lease{}, false, &model.FieldError{Noun: "lease", Field: "size", Value: fmt.Sprint(size), Want: fmt.Sprintf("at most %d bytes", maxLease)}
	}
	l := Lease{BackendType: a[BackendTypeAnnotation]}
	var err error
	if l.PublicIP, err = leaseAddr(PublicIPAnnotation, a[PublicIPAnnotation]); err != nil {
		return Lease{}, false, err
	}
	if l.PublicIPv6, err = leaseAddr(PublicIPv6Annotation, a[PublicIPv6Annotation]); err != nil {
		return Lease{}, false, err
	}
	if l.BackendType == "vxlan" {
		if l.VTEP, err = leaseVTEP(BackendDataAnnotation, json.RawMessage(a[BackendDataAnnotation])); err != nil {
			return Lease{}, false, err
		}
		if l.VTEPv6, err = leaseVTEP(BackendV6DataAnnotation, json.RawMessage(a[BackendV6DataAnnotation])); err != nil {
			return Lease{}, false, err
		}
	}
	if err := l.validate(); err != nil {
		return Lease{}, false, err
	}
	return l, true, nil
}
