package enforce

import (
	"maps"

	"github.com/heddle-net/heddle/internal/dialect"
	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/policy"
	"github.com/heddle-net/heddle/internal/why"
)

// world copies what is known, so that a long answer holds up nothing.
func (e *Enforcer) world() (map[string]policy.Object, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.known {
		return nil, ErrUnknown
	}
	return maps.Collect(e.compiler.Objects()), nil
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
