package policy

import (
	"cmp"
	"encoding/binary"
	"slices"
)

// pair is one label.
type pair struct{ key, value string }

// attrs is what is said of an endpoint, apart from where it is: labels, service account and named ports.
// Equal ones are shared, since many workloads are copies of each other.
type attrs struct {
	text    string // canonical; pairs and account are parts of it
	pairs   []pair // by key
	account string
	ports   []NamedPort // by name, protocol, port; without duplicates
	refs    int
}

// attrsPool shares equal attrs.
type attrsPool map[string]*attrs

// get returns the shared attrs with one reference more.
func (p attrsPool) get(labels map[string]string, account string, ports []NamedPort) *attrs {
	keys := make([]string, 0, len(labels))
	size := 0
	for k, v := range labels {
		keys = append(keys, k)
		size += len(k) + len(v) + 4
	}
	slices.Sort(keys)
	ports = slices.Compact(slices.SortedFunc(slices.Values(ports), func(a, b NamedPort) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Port, b.Port))
	}))
	text := make([]byte, 0, size+len(account)+16+len(ports)*16)
	str := func(s string) {
		text = binary.AppendUvarint(text, uint64(len(s)))
		text = append(text, s...)
	}
	text = binary.AppendUvarint(text, uint64(len(keys)))
	for _, k := range keys {
		str(k)
		str(labels[k])
	}
	str(account)
	for _, n := range ports {
		str(n.Name)
		text = append(text, n.Protocol, byte(n.Port>>8), byte(n.Port))
	}
	a := p[string(text)]
	if a == nil {
		a = newAttrs(string(text))
		p[a.text] = a
	}
	a.refs++
	return a
}

// newAttrs reads the text back, so that all strings share its memory.
func newAttrs(text string) *attrs {
	a := &attrs{text: text}
	rest := text
	num := func() int {
		var b [binary.MaxVarintLen64]byte
		n, used := binary.Uvarint(b[:copy(b[:], rest)])
		rest = rest[used:]
		return int(n)
	}
	str := func() string {
		n := num()
		s := rest[:n]
		rest = rest[n:]
		return s
	}
	if n := num(); n > 0 {
		a.pairs = make([]pair, n)
	}
	for i := range a.pairs {
		a.pairs[i].key = str()
		a.pairs[i].value = str()
	}
	a.account = str()
	for rest != "" {
		name := str()
		a.ports = append(a.ports, NamedPort{Name: name, Protocol: rest[0], Port: uint16(rest[1])<<8 | uint16(rest[2])})
		rest = rest[3:]
	}
	return a
}

func (p attrsPool) release(a *attrs) {
	if a.refs--; a.refs == 0 {
		delete(p, a.text)
	}
}

// overlay returns what a pod makes of an endpoint's own attrs: its labels and its ports add, and win over
// the same label, or the same name and protocol; its service account counts when it names one.
func (p attrsPool) overlay(own, pod *attrs) *attrs {
	account := own.account
	if pod.account != "" {
		account = pod.account
	}
	labels := own.labels()
	if labels == nil {
		labels = map[string]string{}
	}
	for _, l := range pod.pairs {
		labels[l.key] = l.value
	}
	ports := slices.Clone(pod.ports)
	for _, n := range own.ports {
		if !slices.ContainsFunc(pod.ports, func(o NamedPort) bool { return o.Name == n.Name && o.Protocol == n.Protocol }) {
			ports = append(ports, n)
		}
	}
	return p.get(labels, account, ports)
}

// labels is a copy as a map; nil when there are none.
func (a *attrs) labels() map[string]string {
	if len(a.pairs) == 0 {
		return nil
	}
	m := make(map[string]string, len(a.pairs))
	for _, l := range a.pairs {
		m[l.key] = l.value
	}
	return m
}

func (a *attrs) label(key string) (string, bool) {
	for i := range a.pairs {
		if a.pairs[i].key == key {
			return a.pairs[i].value, true
		}
	}
	return "", false
}

// encodePorts is a canonical list of protocols and ports, three bytes each.
func encodePorts(ports []NamedPort) string {
	b := make([]byte, 0, 3*len(ports))
	for _, p := range ports {
		b = append(b, p.Protocol, byte(p.Port>>8), byte(p.Port))
	}
	return canonicalPorts(string(b))
}

// canonicalPorts sorts a list of encodePorts, or several put together.
func canonicalPorts(s string) string {
	if len(s) <= 3 {
		return s
	}
	n := make([]uint32, 0, len(s)/3)
	for i := 0; i < len(s); i += 3 {
		n = append(n, uint32(s[i])<<16|uint32(s[i+1])<<8|uint32(s[i+2]))
	}
	slices.Sort(n)
	n = slices.Compact(n)
	b := make([]byte, 0, 3*len(n))
	for _, v := range n {
		b = append(b, byte(v>>16), byte(v>>8), byte(v))
	}
	return string(b)
}
