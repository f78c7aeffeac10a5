package kube

import (
	"slices"
	"strings"

	"github.com/heddle-net/heddle/internal/model"
)

// take learns one object. mu is held.
func (s *Store) take(src *source, t *thin, gone bool) {
	switch {
	case src.kind == "":
		src.heard(t.name)
	case src.kind == model.KindNode && gone:
		s.dropNode(t.name)
	case src.kind == model.KindNode:
		s.takeNode(t.name, t.node)
	case src.kind == model.KindBlock:
		s.takeBlock(t, gone)
	case gone || t.object == nil:
		if t.wrong != nil && !gone {
			s.log.Warn("an object of the API server is left out", "key", t.key, "version", t.version, "reason", t.wrong)
		}
		s.drop(src.kind, t.key)
	default:
		if r, ok := t.object.(*model.Resource); ok && !s.services && namesServices(r) {
			s.services = true
			poke(s.poke)
		}
		s.set(t.key, t.object)
	}
	if src.kind == model.KindSetting && strings.HasPrefix(t.key, poolPrefix) {
		s.resettle()
	}
}

// replace learns that these are all objects of a source: what differs from what is known are changes as others
// are. mu is held.
func (s *Store) replace(src *source, all []*thin) {
	if src.kind == model.KindBlock {
		s.replaceBlocks(all)
		return
	}
	there := make(map[string]bool, len(all))
	for _, t := range all {
		if src.kind == model.KindNode {
			there[t.name] = true
		} else if t.object != nil {
			there[t.key] = true
		}
	}
	var gone []string
	if src.kind == model.KindNode {
		for name := range s.nodes {
			if !there[name] {
				gone = append(gone, name)
			}
		}
	} else {
		for key := range s.objects[src.kind] {
			if !there[key] && strings.HasPrefix(key, src.prefix) {
				gone = append(gone, key)
			}
		}
	}
	// What is gone goes first: another may have its addresses.
	for _, key := range slices.Sorted(slices.Values(gone)) {
		if src.kind == model.KindNode {
			s.dropNode(key)
		} else {
			s.drop(src.kind, key)
		}
	}
	if src.kind == model.KindSetting && len(gone) > 0 {
		s.resettle()
	}
	for _, t := range all {
		s.take(src, t, false)
	}
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
