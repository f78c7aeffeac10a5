// Package bgp speaks BGP for a node: it makes its sessions equal to a peering.Plan, and tells what it has learned.
// It decides nothing: whom to speak to and what to believe stands in internal/peering.
package bgp

import (
	"context"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/peering"
)

// Speaker is a node's BGP.
type Speaker interface {
	// Run serves until ctx ends. It leaves without telling the neighbours goodbye, so that those that can keep
	// its routes do so while it restarts (RFC 4724).
	Run(ctx context.Context) error

	// Apply makes sessions, filters and announcements equal to the plan; nil ends them all. Sessions that do not
	// differ are not touched. It does as much as it can, and returns what it could not do.
	Apply(ctx context.Context, p *peering.Plan) []model.Problem

	// Routes are what neighbours say, also what is not believed; sorted by prefix, the best first.
	Routes() []peering.Route

	// Changed gets a value after one or many changes of Routes or of a session's state.
	Changed() <-chan struct{}

	// Settled reports whether every neighbour of the plan has told all that it knows since the start, or was
	// given up on: until then, a route of an earlier life that nobody tells of may still come.
	Settled() bool

	// Status is how every neighbour is now, sorted by address.
	Status() []peering.Status
}
