package kube

import (
	"context"
	"errors"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/store"
)

// fileBlock takes a block that Kubernetes gave to its node, and makes or changes the Block object of any other. It
// returns when this store has learned of the write, and so of every write to a Block object before it.
func (s *Store) fileBlock(ctx context.Context, b *model.Block, at store.Revision) (store.Revision, error) {
	for range attempts {
		if err := s.await(ctx, model.KindBlock); err != nil {
			return 0, err
		}
		if s.given(b) {
			defer s.mu.Unlock()
			return s.putBlock(b, at)
		}
		known, err := s.mayFile(b, at)
		s.mu.Unlock()
		if err != nil {
			return 0, err
		}
		version, err := s.writeBlock(ctx, b, known)
		if err == nil {
			return s.learnedBlock(ctx, b, version)
		}
		if !errors.Is(err, store.ErrConflict) {
			return 0, err
		}
		// Whoever tries again begins with what was learned until then.
		s.awaitNews(ctx, blockName(b.Key()), known)
		if at != store.AnyRevision {
			return 0, err
		}
	}
	return 0, fmt.Errorf("block %s: %w", b.CIDR, store.ErrConflict)
}

// mayFile tells which Block object is to be changed, nil for a new one, or why none may be. mu is held.
func (s *Store) mayFile(b *model.Block, at store.Revision) (*claimed, error) {
	if err := s.unfollowed(); err != nil {
		return nil, fmt.Errorf("block %s of pool %q: %w", b.CIDR, b.Pool, err)
	}
	known := s.claimed[blockName(b.Key())]
	if have := s.objects[model.KindBlock][b.Key()].revision; at != store.AnyRevision && at != have || at == 0 && known != nil {
		return nil, fmt.Errorf("block %s: %w", b.CIDR, store.ErrConflict)
	}
	if known == nil && s.nodes[b.Node] == nil {
		return nil, fmt.Errorf("block %s: %w: the API server has no Node object %q (heddle agent --node must be its name)", b.CIDR, store.ErrUnsupported, b.Node)
	}
	return known, s.against(b, "")
}

// writeBlock makes a Block object, or changes the one that is known, and returns its version.
func (s *Store) writeBlock(ctx context.Context, b *model.Block, known *claimed) (version string, err error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	c, u := s.clients.dynamic.Resource(blocksGVR), objectOf(b)
	var made *unstructured.Unstructured
	if known == nil {
		made, err = c.Create(ctx, u, metav1.CreateOptions{})
	} else {
		u.SetUID(known.uid)
		u.SetResourceVersion(known.version)
		made, err = c.Update(ctx, u, metav1.UpdateOptions{})
	}
	if err != nil {
		if known != nil && apierrors.IsNotFound(err) {
			return "", fmt.Errorf("block %s: %w", b.CIDR, store.ErrConflict)
		}
		return "", s.blockFailed(ctx, b.CIDR.String(), err)
	}
	return made.GetResourceVersion(), nil
}

// blockFailed tells whether nothing is known of a write, or it was refused.
func (s *Store) blockFailed(ctx context.Context, block string, err error) error {
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		return ctx.Err()
	case apierrors.IsAlreadyExists(err), apierrors.IsConflict(err):
		return fmt.Errorf("block %s: %w", block, store.ErrConflict)
	case apierrors.IsNotFound(err):
		return fmt.Errorf("block %s: %w: the API server has no CustomResourceDefinition %s: kubectl apply -f deploy/heddle.yaml", block, store.ErrUnsupported, blocksGVR.GroupResource())
	case apierrors.IsForbidden(err):
		return fmt.Errorf("block %s: the API server does not let this agent write it (what agents may is in deploy/heddle.yaml): %w", block, err)
	case passing(err), apierrors.IsUnauthorized(err):
		return fmt.Errorf("block %s: %w: %w", block, store.ErrUnavailable, explain(s.clients.host, "blocks", err))
	}
	return fmt.Errorf("block %s: %w", block, err)
}

// learnedBlock waits until this store has learned of a version of a Block object, and returns its revision. Blocks of
// different sizes have different names, so two of them can be made at once: the younger one goes again.
func (s *Store) learnedBlock(ctx context.Context, b *model.Block, version string) (store.Revision, error) {
	noun := fmt.Sprintf("block %s", b.CIDR)
	wctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	if !s.until(wctx, func() bool { return reached(s.blocksAt, version) }) {
		if err := s.open(context.Background()); err != nil {
			return 0, err
		}
		return 0, fmt.Errorf("%s: %w: the API server took the write, and has not told of it yet", noun, store.ErrUnavailable)
	}
	s.mu.Lock()
	name := blockName(b.Key())
	cl, rev := s.claimed[name], s.objects[model.KindBlock][b.Key()].revision
	late := s.against(b, version)
	if of := s.podCIDROver(b.CIDR); of.IsValid() {
		late = fmt.Errorf("%s: it overlaps podCIDR %s: %w", noun, of, store.ErrConflict)
	}
	s.mu.Unlock()
	switch {
	case cl == nil || cl.block != *b:
		return 0, fmt.Errorf("%s: %w: somebody else wrote to it right after", noun, store.ErrUnavailable)
	case late == nil && rev == 0:
		return 0, fmt.Errorf("%s: %w: it overlaps another one, which has not gone yet", noun, store.ErrUnavailable)
	case late == nil:
		return rev, nil
	case cl.born != version:
		return 0, late // it was there before
	}
	if err := s.removeBlock(ctx, name, cl, true); err != nil && !errors.Is(err, store.ErrNotFound) {
		return 0, fmt.Errorf("%w; it could not be taken back: %w", late, err)
	}
	return 0, late
}

// deleteBlock deletes a Block object. One that Kubernetes gave stays with its node: that is nothing to do.
func (s *Store) deleteBlock(ctx context.Context, key string, at store.Revision) error {
	for range attempts {
		if err := s.await(ctx, model.KindBlock); err != nil {
			return err
		}
		v, listed := s.objects[model.KindBlock][key]
		name := blockName(key)
		cl := s.claimed[name]
		s.mu.Unlock()
		switch {
		case cl == nil && (listed || at == store.AnyRevision):
			return nil
		case cl == nil:
			return fmt.Errorf("block %q: %w", key, store.ErrNotFound)
		case at != store.AnyRevision && at != v.revision:
			return fmt.Errorf("block %q: %w", key, store.ErrConflict)
		}
		err := s.removeBlock(ctx, name, cl, at != store.AnyRevision)
		switch {
		case at == store.AnyRevision && errors.Is(err, store.ErrConflict):
			s.awaitNews(ctx, name, cl)
			continue
		case at == store.AnyRevision && errors.Is(err, store.ErrNotFound):
			return nil
		case errors.Is(err, store.ErrConflict), errors.Is(err, store.ErrNotFound):
			s.awaitNews(ctx, name, cl)
		}
		return err
	}
	return fmt.Errorf("block %q: %w", key, store.ErrConflict)
}

// removeBlock deletes the Block object that is known, only as it is known if that is exact, and waits until this store
// has learned of it.
func (s *Store) removeBlock(ctx context.Context, name string, cl *claimed, exact bool) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	o := metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &cl.uid}}
	if exact {
		o.Preconditions.ResourceVersion = &cl.version
	}
	err := s.clients.dynamic.Resource(blocksGVR).Delete(ctx, name, o)
	if apierrors.IsNotFound(err) {
		return fmt.Errorf("block %s: %w", cl.block.CIDR, store.ErrNotFound)
	}
	if err != nil {
		return s.blockFailed(ctx, cl.block.CIDR.String(), err)
	}
	if !s.until(ctx, func() bool { now := s.claimed[name]; return now == nil || now.uid != cl.uid }) {
		return fmt.Errorf("block %s: %w: the API server took the deletion, and has not told of it yet", cl.block.CIDR, store.ErrUnavailable)
	}
	return nil
}

// awaitNews waits a moment for something else than what is known of a Block object.
func (s *Store) awaitNews(ctx context.Context, name string, known *claimed) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	s.until(ctx, func() bool { return s.claimed[name] != known })
}

// until waits until something is so, and reports whether it came to be. is is asked under mu.
func (s *Store) until(ctx context.Context, is func() bool) bool {
	for {
		s.mu.Lock()
		so, grown := is(), s.grown
		s.mu.Unlock()
		if so {
			return true
		}
		select {
		case <-grown:
		case <-s.done:
			return false
		case <-ctx.Done():
			return false
		}
	}
}
