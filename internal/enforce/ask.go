package enforce

import (
	"maps"
	"runtime"

	"github.com/heddle-net/heddle/internal/dialect"
	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/policy"
	"github.com/heddle-net/heddle/internal/why"
)

// part is how many objects are copied at a time: the 30,000 pods of a large cluster take a tenth of a second.
const part = 256

// world copies what is known, so that a long answer holds up nobody; nor does the copying, which lets others go on
// after every part. What these change meanwhile is looked up at the end.
func (e *Enforcer) world() (map[string]policy.Object, error) {
	e.asking.Lock()
	defer e.asking.Unlock()
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.known {
		return nil, ErrUnknown
	}
	e.touched = map[string]bool{}
	defer func() { e.touched = nil }()
	all := make(map[string]policy.Object, e.workloads+len(e.pods)+len(e.resources))
	n := 0
	for key, o := range e.compiler.Objects() {
		all[key] = o
		if n++; n%part == 0 {
			e.outside(runtime.Gosched)
		}
	}
	for key := range e.touched {
		delete(all, key)
		if o := e.compiler.Object(key); o != nil {
			all[key] = o
		}
	}
	return all, nil
}

// Why answers whether a connection would be let through, and what decides it.
func (e *Enforcer) Why(q why.Question, nodes []model.Node) ([]why.Answer, error) {
	all, err := e.world()
	if err != nil {
		return nil, err
	}
	return why.Ask(why.World{Objects: maps.All(all), Nodes: nodes}, q)
}

// ResourceChange is what somebody thinks of doing.
type ResourceChange struct {
	Apply  []model.Resource `json:"apply,omitempty"`
	Delete []string         `json:"delete,omitempty"` // keys
}

// Check tells what a change of resources would let through or stop.
func (e *Enforcer) Check(c ResourceChange, nodes []model.Node) (why.Checked, error) {
	before, err := e.world()
	if err != nil {
		return why.Checked{}, err
	}
	then := maps.Clone(before)
	for i := range c.Apply {
		r := &c.Apply[i]
		if err := r.Validate(); err != nil {
			return why.Checked{}, err
		}
		o, err := dialect.Object(r)
		if err != nil {
			return why.Checked{}, err
		}
		then["r/"+r.Key()] = o
	}
	for _, key := range c.Delete {
		delete(then, "r/"+key)
	}
	return why.Check(why.World{Objects: maps.All(before), Nodes: nodes}, why.World{Objects: maps.All(then), Nodes: nodes}), nil
}
