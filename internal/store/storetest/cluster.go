package storetest

import (
	"slices"
	"testing"

	"github.com/heddle-net/heddle/internal/store"
)

// ofPolicy are the promises about endpoints and resources that the suite writes itself.
var ofPolicy = []string{
	"EndpointsAndResourcesAreFiled", "EndpointsAndResourcesAreWatchedInOneOrder", "KeysAreThoseOfAPrefix", "ListOfSeveralKindsIsOfOneRevision",
}

// RunCluster runs what holds also where endpoints and resources are written by somebody else, as in Kubernetes.
func RunCluster(t *testing.T, mk Maker, compact func(t *testing.T, s store.Store)) {
	run(t, mk, compact, slices.DeleteFunc(slices.Clone(nodePromises), func(p promise) bool { return slices.Contains(ofPolicy, p.name) }))
}
