package kube

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/heddle-net/heddle/internal/dialect"
)

const (
	// lookEvery is how often it is asked which kinds are served.
	lookEvery = 30 * time.Second
	// A definition that has just come is served a moment later: for so long, looks follow each other quickly.
	eagerFor, eagerEvery = 10 * time.Second, 500 * time.Millisecond
)

// discoverLoop follows the kinds of policies that not every cluster has, as they come and go.
func (s *Store) discoverLoop() {
	eager := time.Time{}
	for delay := shortest; ; {
		err := s.look(s.ctx)
		if s.ctx.Err() != nil {
			return
		}
		wait := lookEvery/2 + rand.N(lookEvery/2)
		switch {
		case err != nil:
			wait, delay = jitter(delay), min(2*delay, longest)
		case time.Now().Before(eager):
			wait, delay = eagerEvery, shortest
		default:
			delay = shortest
		}
		timer := time.NewTimer(wait)
		select {
		case <-s.ctx.Done():
		case <-timer.C:
		case <-s.poke:
			eager = time.Now().Add(eagerFor)
		}
		timer.Stop()
	}
}

// look asks which kinds are served, and follows just those.
func (s *Store) look(ctx context.Context) error {
	wanted, unsure, err := s.wanted(ctx)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	for gvr, src := range s.optional {
		if wanted[gvr] == nil && !slices.Contains(unsure, gvr.GroupVersion()) {
			s.log.Info("a kind is served no more", "resource", gvr.GroupResource())
			s.stop(src)
			delete(s.optional, gvr)
		}
	}
	for gvr, src := range wanted {
		if s.optional[gvr] == nil {
			s.log.Info("a kind is served", "resource", gvr.GroupResource())
			s.optional[gvr] = src
			s.start(src)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.lookErr
	s.lookErr = nil
	if err != nil {
		s.lookErr = explain(s.clients.host, "the kinds that it serves", err)
		if was == nil {
			s.log.Warn("the API server does not tell which kinds it serves; what was known stays", "reason", s.lookErr)
		}
	}
	s.looked = s.looked || err == nil
	s.wake()
	return err
}

// wanted are the sources of the optional kinds that are served. Of the groups that are unsure nothing is known
// now.
func (s *Store) wanted(ctx context.Context) (wanted map[schema.GroupVersionResource]*source, unsure []schema.GroupVersion, err error) {
	all := []schema.GroupVersion{clusterV1, calicoV1, calicoV3}
	everything := append([]schema.GroupVersion{coreV1, discoveryV1, blockV1}, all...)
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	var groups metav1.APIGroupList
	if err := s.clients.core.Get().AbsPath("/apis").MaxRetries(0).Do(ctx).Into(&groups); err != nil {
		return nil, everything, fmt.Errorf("list of API groups: %w", err)
	}
	wanted = map[schema.GroupVersionResource]*source{}
	isCalico := false
	for _, gv := range all {
		if gv == calicoV3 && isCalico {
			continue // the same objects in another form
		}
		if !serves(&groups, gv) {
			continue
		}
		resources, err := s.resources(ctx, gv)
		if err != nil {
			// Also what follows from it: the other form of Calico's objects, and what they refer to.
			return wanted, everything, err
		}
		for _, k := range dialect.Kinds() {
			if k.APIVersion != gv.String() || !slices.ContainsFunc(resources, func(r metav1.APIResource) bool { return r.Name == k.Plural && r.Kind == k.Kind }) {
				continue
			}
			src := s.custom(k)
			wanted[src.resource] = src
			isCalico = isCalico || calicoGroup(gv.Group)
		}
	}
	if has, err := s.servesBlocks(ctx, &groups); err != nil {
		return wanted, everything, err
	} else if has {
		src := s.blocks()
		wanted[src.resource] = src
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.services = s.services && isCalico
	s.sliced = s.services
	if isCalico {
		// Rules may choose by service accounts, and by the addresses behind a service.
		src := s.builtInResource(s.clients.core, coreV1, "serviceaccounts", "ServiceAccount", func() runtime.Object { return &corev1.ServiceAccountList{} })
		wanted[src.resource] = src
	}
	if s.services {
		src := s.builtInResource(s.clients.slices, discoveryV1, "endpointslices", "EndpointSlice", func() runtime.Object { return &discoveryv1.EndpointSliceList{} })
		wanted[src.resource] = src
	}
	return wanted, nil, nil
}

// resources are those of a group; none when it is not there after all.
func (s *Store) resources(ctx context.Context, gv schema.GroupVersion) ([]metav1.APIResource, error) {
	var list metav1.APIResourceList
	err := s.clients.core.Get().AbsPath("/apis/" + gv.String()).MaxRetries(0).Do(ctx).Into(&list)
	if err != nil && !apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("API group %s: %w", gv, err)
	}
	return list.APIResources, nil
}

// servesBlocks tells whether there are Block objects.
func (s *Store) servesBlocks(ctx context.Context, groups *metav1.APIGroupList) (bool, error) {
	if !serves(groups, blockV1) {
		return false, nil
	}
	list, err := s.resources(ctx, blockV1)
	return slices.ContainsFunc(list, func(r metav1.APIResource) bool { return r.Name == blocksGVR.Resource }), err
}

// serves tells whether a group is served in a version.
func serves(groups *metav1.APIGroupList, gv schema.GroupVersion) bool {
	return slices.ContainsFunc(groups.Groups, func(g metav1.APIGroup) bool {
		return g.Name == gv.Group && slices.ContainsFunc(g.Versions, func(v metav1.GroupVersionForDiscovery) bool { return v.Version == gv.Version })
	})
}
