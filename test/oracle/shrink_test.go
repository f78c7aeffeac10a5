package oracle_test

import (
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/heddle-net/heddle/test/oracle"
)

// shrink takes away from a case whatever can go with the failure staying of its sort: whole states, then
// parts of all states at once, then parts of single ones.
func shrink(k *kase, failure error) *kase {
	sort := sortOf(failure)
	budget := 20_000 // checks
	fails := func(c *kase) bool {
		if budget--; budget < 0 || len(c.States) == 0 {
			return false
		}
		err := c.safeCheck()
		return err != nil && sortOf(err) == sort
	}
	if !fails(k) {
		return k // it needs more than the case holds: kept as it is
	}
	for changed := true; changed && budget > 0; {
		changed = false
		for i := len(k.States) - 1; i >= 0; i-- {
			c := *k
			c.States = slices.Delete(slices.Clone(k.States), i, i+1)
			if fails(&c) {
				k, changed = &c, true
			}
		}
		trees := treesOf(k.States)
		try := func() bool {
			c := *k
			var ok bool
			c.States, ok = statesOf(trees)
			if ok && fails(&c) {
				k, changed = &c, true
				return true
			}
			return false
		}
		paths := map[string]bool{}
		for _, t := range trees {
			pathsOf("", t, paths)
		}
		maps.DeleteFunc(paths, func(_ string, goes bool) bool { return !goes })
		order := slices.Sorted(maps.Keys(paths))
		slices.Reverse(order) // inner and later ones first would be slow: the sort puts the shorter first
		slices.SortStableFunc(order, func(a, b string) int { return strings.Count(a, "\x00") - strings.Count(b, "\x00") })
		for _, path := range order {
			before := treesOf(k.States)
			trees = treesOf(k.States)
			for i := range trees {
				trees[i] = without(trees[i], strings.Split(path, "\x00")[1:])
			}
			if same(before, trees) || try() || len(trees) == 1 {
				continue
			}
			for i := range before {
				trees = treesOf(k.States)
				trees[i] = without(trees[i], strings.Split(path, "\x00")[1:])
				if !same(treesOf(k.States), trees) && try() {
					break
				}
			}
		}
	}
	return k
}

// sortOf tells failures apart that should not be taken for each other.
func sortOf(err error) string {
	if d, ok := errors.AsType[*disagreement](err); ok {
		return d.what
	}
	for _, sort := range []string{"the dialect refuses it", "the deltas do not add up", "unsound", "the kernel's walk", "panic"} {
		if strings.Contains(err.Error(), sort) {
			return sort
		}
	}
	return "other"
}

func treesOf(states []state) []any {
	trees := make([]any, len(states))
	for i, w := range states {
		text, err := json.Marshal(w)
		if err == nil {
			err = json.Unmarshal(text, &trees[i])
		}
		if err != nil {
			panic(err)
		}
	}
	return trees
}

func same(a, b []any) bool {
	x, errX := json.Marshal(a)
	y, errY := json.Marshal(b)
	return errX == nil && errY == nil && string(x) == string(y)
}

func statesOf(trees []any) ([]state, bool) {
	states := make([]state, len(trees))
	for i, t := range trees {
		text, err := json.Marshal(t)
		if err != nil {
			return nil, false
		}
		states[i].World = &oracle.World{}
		if json.Unmarshal(text, &states[i]) != nil {
			return nil, false
		}
	}
	return states, true
}

// pathsOf names every part. An object in a list goes by kind and name, so that it is found in all states.
func pathsOf(at string, tree any, paths map[string]bool) {
	switch tree := tree.(type) {
	case map[string]any:
		for k, v := range tree {
			paths[at+"\x00"+k] = at != "" || k != "node"
			pathsOf(at+"\x00"+k, v, paths)
		}
	case []any:
		for i, v := range tree {
			name := nameOf(i, v)
			paths[at+"\x00"+name] = true
			pathsOf(at+"\x00"+name, v, paths)
		}
	}
}

func nameOf(i int, item any) string {
	if m, ok := item.(map[string]any); ok {
		if meta, ok := m["metadata"].(map[string]any); ok {
			text, err := json.Marshal([]any{m["kind"], meta["namespace"], meta["name"]})
			if err == nil {
				return string(text)
			}
		}
		if link, ok := m["link"].(string); ok {
			node, _ := m["node"].(string)
			return node + ":" + link
		}
	}
	return "[" + strconv.Itoa(i) + "]"
}

// without is the tree without the part; what is not there is not missed.
func without(tree any, path []string) any {
	switch tree := tree.(type) {
	case map[string]any:
		if len(path) == 1 {
			delete(tree, path[0])
		} else if inner, ok := tree[path[0]]; ok {
			tree[path[0]] = without(inner, path[1:])
		}
	case []any:
		for i, v := range tree {
			if nameOf(i, v) != path[0] {
				continue
			}
			if len(path) == 1 {
				return slices.Delete(tree, i, i+1)
			}
			tree[i] = without(v, path[1:])
			break
		}
	}
	return tree
}
