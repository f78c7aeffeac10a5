package kube

import (
	"reflect"
	"regexp"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	strictjson "sigs.k8s.io/json"

	"github.com/heddle-net/heddle/internal/policy"
)

// Pod is what is read of a Pod of Kubernetes. The rest is not even decoded: there is much of it, and in it are
// quantities, some of which take more time to read than anybody has (1e-999999999).
type Pod struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              PodSpec `json:"spec"`
}

// PodSpec is what is read of a pod's spec.
type PodSpec struct {
	ServiceAccountName       string      `json:"serviceAccountName"`
	DeprecatedServiceAccount string      `json:"serviceAccount"`
	HostNetwork              bool        `json:"hostNetwork"`
	InitContainers           []Container `json:"initContainers"`
	Containers               []Container `json:"containers"`
}

// Container is what is read of a container.
type Container struct {
	Ports         []corev1.ContainerPort         `json:"ports"`
	RestartPolicy *corev1.ContainerRestartPolicy `json:"restartPolicy"`
}

// podFieldRE finds what in a field's path is the name of a field of a pod's spec, or of a container.
var podFieldRE = regexp.MustCompile(`^spec\.((?:initContainers|containers)\[\d+\]\.)?([^.\[\]]+)$`)

// The fields that Kubernetes knows.
var (
	podFields       = fields(reflect.TypeFor[corev1.PodSpec]())
	containerFields = fields(reflect.TypeFor[corev1.Container]())
)

// unreadInPod reports whether a field that Pod does not know is one that Kubernetes does.
func unreadInPod(wrong strictjson.FieldError) bool {
	m := podFieldRE.FindStringSubmatch(wrong.FieldPath())
	switch {
	case m == nil || !strings.HasPrefix(wrong.Error(), "unknown"):
		return false
	case m[1] == "":
		return podFields[m[2]] != nil
	}
	return containerFields[m[2]] != nil
}

// pod takes labels, service account and named ports. One on the host's network is the node, as far as the
// network can see: no policy selects it, so it has none of these.
func pod(a at, p *Pod) (*policy.Pod, error) {
	out := &policy.Pod{Namespace: p.Namespace, Name: p.Name}
	spec := a.field("spec")
	account := p.Spec.ServiceAccountName
	if account == "" {
		account = p.Spec.DeprecatedServiceAccount
	}
	if account != "" {
		if why := validation.IsDNS1123Subdomain(account); len(why) > 0 {
			return nil, spec.field("serviceAccountName").bad(account, "a name of RFC 1123: "+why[0])
		}
	}
	var ports []policy.NamedPort
	for i, c := range p.Spec.InitContainers {
		// Others have ended before the pod is of use to anybody.
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			named, err := containerPorts(spec.field("initContainers").item(i).field("ports"), c.Ports)
			if err != nil {
				return nil, err
			}
			ports = append(ports, named...)
		}
	}
	for i, c := range p.Spec.Containers {
		named, err := containerPorts(spec.field("containers").item(i).field("ports"), c.Ports)
		if err != nil {
			return nil, err
		}
		ports = append(ports, named...)
	}
	if !p.Spec.HostNetwork {
		out.Labels, out.ServiceAccount, out.Ports = p.Labels, account, ports
	}
	return out, nil
}

// containerPorts are those that have a name.
func containerPorts(a at, ports []corev1.ContainerPort) ([]policy.NamedPort, error) {
	var out []policy.NamedPort
	for i, p := range ports {
		a := a.item(i)
		number, err := portNumber(a.field("containerPort"), p.ContainerPort)
		if err != nil {
			return nil, err
		}
		given := &p.Protocol
		if p.Protocol == "" {
			given = nil
		}
		proto, err := protocol(a.field("protocol"), given)
		if err != nil {
			return nil, err
		}
		if p.Name == "" {
			continue
		}
		if why := validation.IsValidPortName(p.Name); len(why) > 0 {
			return nil, a.field("name").bad(p.Name, "a port's name: "+why[0])
		}
		out = append(out, policy.NamedPort{Name: p.Name, Protocol: proto, Port: number})
	}
	return out, nil
}
