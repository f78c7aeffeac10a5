package policy

import (
	"slices"
	"strings"

	"github.com/heddle-net/heddle/internal/selector"
)

// kind tells what a class is of: each has its own effective labels.
type kind uint8

const (
	workload kind = iota
	networkSet
	hostEndpoint
)

// class is all workloads, network sets or host endpoints that no selector and no named port can tell apart.
type class struct {
	classKey
	holders []*holder
	locals  int // how many of them are policed here
	facts   facts
	// selected are the policies whose subject matches, known while locals > 0.
	selected map[*policyRec]struct{}
	// stale: effective labels changed, or new. moved: selected changed in this round.
	stale, moved bool
}

type classKey struct {
	kind  kind
	attrs *attrs
	space *space // nil: in no namespace
}

// metadataName is the label by which Kubernetes names every namespace.
const metadataName = "kubernetes.io/metadata.name"

// Label implements selector.Labels: the effective labels.
func (k *class) Label(key string) (string, bool) {
	if !strings.HasPrefix(key, "p") {
		return k.attrs.label(key)
	}
	switch {
	case key == LabelNamespace:
		if k.space == nil {
			return "", false
		}
		return k.space.name, true
	case key == LabelOrchestrator:
		if k.kind != workload {
			return "", false
		}
		return Orchestrator, true
	case key == LabelServiceAccount:
		if k.kind != workload || k.attrs.account == "" {
			return "", false
		}
		return k.attrs.account, true
	case strings.HasPrefix(key, PrefixNamespace):
		if k.space == nil {
			return "", false
		}
		return k.space.label(key[len(PrefixNamespace):])
	case strings.HasPrefix(key, PrefixServiceAcct):
		if a := k.account(); a != nil {
			v, ok := a.labels[key[len(PrefixServiceAcct):]]
			return v, ok
		}
		return "", false
	}
	return k.attrs.label(key)
}

// reserved are the keys of labels that are lent, not own.
func reserved(key string) bool {
	return strings.HasPrefix(key, "p") && (key == LabelNamespace || key == LabelOrchestrator || key == LabelServiceAccount ||
		strings.HasPrefix(key, PrefixNamespace) || strings.HasPrefix(key, PrefixServiceAcct))
}

func (k *class) account() *account {
	if k.space == nil || k.kind != workload || k.attrs.account == "" {
		return nil
	}
	return k.space.accounts[k.attrs.account]
}

// each calls f for every effective label.
func (k *class) each(f func(pair)) {
	for _, l := range k.attrs.pairs {
		if !reserved(l.key) {
			f(l)
		}
	}
	if k.kind == workload {
		f(pair{LabelOrchestrator, Orchestrator})
		if k.attrs.account != "" {
			f(pair{LabelServiceAccount, k.attrs.account})
		}
	}
	if k.space != nil {
		for _, l := range k.space.pairs {
			f(l)
		}
	}
	if a := k.account(); a != nil {
		for _, l := range a.pairs {
			f(l)
		}
	}
}

// space is a namespace: the classes in it, and what is said of it.
type space struct {
	name     string
	labels   map[string]string
	pairs    []pair // the effective labels that it lends to what is in it
	classes  map[*class]struct{}
	accounts map[string]*account
	written  versions[*Namespace]
}

func newSpace(name string) *space {
	s := &space{name: name, classes: map[*class]struct{}{}, accounts: map[string]*account{}}
	s.set(nil)
	return s
}

// set takes the labels of the namespace's object.
func (s *space) set(labels map[string]string) {
	s.labels = labels
	s.pairs = []pair{{LabelNamespace, s.name}, {PrefixNamespace + metadataName, s.name}}
	for k, v := range labels {
		if k != metadataName {
			s.pairs = append(s.pairs, pair{PrefixNamespace + k, v})
		}
	}
}

func (s *space) label(key string) (string, bool) {
	if key == metadataName {
		return s.name, true
	}
	v, ok := s.labels[key]
	return v, ok
}

// unused: nothing is in it or said of it.
func (s *space) unused() bool {
	return len(s.classes) == 0 && len(s.accounts) == 0 && len(s.written) == 0
}

// account is what is said of a service account.
type account struct {
	labels  map[string]string
	pairs   []pair
	written versions[*ServiceAccount]
}

func (a *account) set(labels map[string]string) {
	a.labels, a.pairs = labels, nil
	for k, v := range labels {
		a.pairs = append(a.pairs, pair{PrefixServiceAcct + k, v})
	}
}

// versions are objects under different keys that mean the same thing. The least key counts, whatever the
// order in which they came.
type versions[T any] []version[T]

type version[T any] struct {
	key string
	of  T
}

func (v *versions[T]) put(key string, of T) {
	i, found := slices.BinarySearchFunc(*v, key, func(e version[T], k string) int { return strings.Compare(e.key, k) })
	if found {
		(*v)[i].of = of
		return
	}
	*v = slices.Insert(*v, i, version[T]{key, of})
}

func (v *versions[T]) del(key string) {
	*v = slices.DeleteFunc(*v, func(e version[T]) bool { return e.key == key })
}

// index finds those of many selectors that may match a class, by a label that they require.
type index[T comparable] struct {
	by   map[pair]map[T]struct{}
	rest map[T]struct{}
}

func newIndex[T comparable]() index[T] {
	return index[T]{map[pair]map[T]struct{}{}, map[T]struct{}{}}
}

func (x *index[T]) add(s selector.Selector, t T) {
	key, value, ok := s.Requires()
	if !ok {
		x.rest[t] = struct{}{}
		return
	}
	set := x.by[pair{key, value}]
	if set == nil {
		set = map[T]struct{}{}
		x.by[pair{key, value}] = set
	}
	set[t] = struct{}{}
}

func (x *index[T]) remove(s selector.Selector, t T) {
	key, value, ok := s.Requires()
	if !ok {
		delete(x.rest, t)
		return
	}
	set := x.by[pair{key, value}]
	delete(set, t)
	if len(set) == 0 {
		delete(x.by, pair{key, value})
	}
}

// candidates calls f for everything that may match the class, each once.
func (x *index[T]) candidates(k *class, f func(T)) {
	for t := range x.rest {
		f(t)
	}
	k.each(func(l pair) {
		for t := range x.by[l] {
			f(t)
		}
	})
}
