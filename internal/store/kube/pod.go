package kube

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/heddle-net/heddle/internal/ipam"
	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/store"
)

// livePods are those with a node of which somebody may still be running: the address of one that is over is
// somebody else's soon.
const livePods = "spec.nodeName!=,status.phase!=Succeeded,status.phase!=Failed"

// mirrorAnnotation of the Pod that stands for a static one is what the kubelet knows the static one by.
const mirrorAnnotation = "kubernetes.io/config.mirror"

// protocols by number; a port that names none is TCP.
var protocols = map[corev1.Protocol]uint8{"": 6, corev1.ProtocolTCP: 6, corev1.ProtocolUDP: 17, corev1.ProtocolSCTP: 132}

// reducePod makes an endpoint of a pod. Pods of the host's network are none of ours.
func (t *texts) reducePod(o runtime.Object) *thin {
	p, ok := o.(*corev1.Pod)
	if !ok {
		return &thin{}
	}
	out := &thin{namespace: p.Namespace, name: p.Name, version: p.ResourceVersion}
	if p.Spec.NodeName == "" || p.Spec.HostNetwork {
		return out
	}
	key := p.Spec.NodeName + ":" + p.Namespace + ":" + p.Name
	out.key = key
	if p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
		return out
	}
	e := &model.Endpoint{
		Node: t.one(p.Spec.NodeName), Namespace: t.one(p.Namespace),
		Name: key[len(key)-len(p.Name):], // the key is kept in any case
		UID:  string(p.UID), Labels: t.labels(p.Labels), ServiceAccount: t.one(p.Spec.ServiceAccountName),
	}
	if uid := p.Annotations[mirrorAnnotation]; uid != "" {
		e.UID = strings.Clone(uid)
	}
	e.Wishes = ipam.Annotated(p.Annotations)
	ips := p.Status.PodIPs
	if len(ips) == 0 && p.Status.PodIP != "" {
		ips = []corev1.PodIP{{IP: p.Status.PodIP}}
	}
	for _, ip := range ips {
		if a, err := netip.ParseAddr(ip.IP); err == nil && a.IsGlobalUnicast() && a.Zone() == "" && !a.Is4In6() {
			e.Addresses = append(e.Addresses, a)
		}
	}
	var ports []model.NamedPort
	take := func(c *corev1.Container) {
		for _, port := range c.Ports {
			if number := protocols[port.Protocol]; port.Name != "" && number != 0 && port.ContainerPort > 0 && port.ContainerPort < 1<<16 {
				ports = append(ports, model.NamedPort{Name: t.one(port.Name), Protocol: number, Port: uint16(port.ContainerPort)})
			}
		}
	}
	for i := range p.Spec.Containers {
		take(&p.Spec.Containers[i])
	}
	for i := range p.Spec.InitContainers {
		if c := &p.Spec.InitContainers[i]; c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			take(c)
		}
	}
	e.Ports = slices.Clip(ports)
	if out.wrong = cmp.Or(e.Validate(), store.CheckKey(e.Kind(), key)); out.wrong == nil {
		out.object = e
	}
	return out
}

// mostTexts bounds how many texts are known as such that others may share; then it begins anew.
const mostTexts = 16 << 10

// texts lets equal texts and equal sets of labels share their memory: those of a cluster's pods repeat.
type texts struct {
	mu   sync.Mutex
	ones map[string]string
	sets map[string]map[string]string
}

func newTexts() *texts {
	return &texts{ones: map[string]string{}, sets: map[string]map[string]string{}}
}

func (t *texts) one(s string) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.oneLocked(s)
}

func (t *texts) oneLocked(s string) string {
	if had, ok := t.ones[s]; ok {
		return had
	}
	if len(t.ones) >= mostTexts {
		clear(t.ones)
	}
	s = strings.Clone(s) // it may be part of something larger
	t.ones[s] = s
	return s
}

// labels is a set that nobody may write to; nil for an empty one.
func (t *texts) labels(m map[string]string) map[string]string {
	if len(m) == 0 {
		return nil
	}
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	var b strings.Builder
	for _, k := range keys {
		b.WriteString(k)
		b.WriteByte(0)
		b.WriteString(m[k])
		b.WriteByte(0)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if had, ok := t.sets[b.String()]; ok {
		return had
	}
	if len(t.sets) >= mostTexts/4 {
		clear(t.sets)
	}
	set := make(map[string]string, len(m))
	for _, k := range keys {
		set[t.oneLocked(k)] = t.oneLocked(m[k])
	}
	t.sets[b.String()] = set
	return set
}
