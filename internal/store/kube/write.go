package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/resourceversion"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/store"
)

// attempts bounds how often a write is tried when somebody else wrote to the Node object meanwhile: the kubelet
// does so now and then.
const attempts = 30

// Put implements store.Store. Nodes are written as annotations of their Node object, for flanneld as well; Put
// returns when this store has learned of the write, and so of every write to a Node object before it. Pools are
// filed here; a block that Kubernetes gave to its node is taken, any other is a Block object. All else is ErrUnsupported.
func (s *Store) Put(ctx context.Context, o model.Object, at store.Revision) (store.Revision, error) {
	if _, err := store.Encode(o); err != nil {
		return 0, err
	}
	if err := s.open(ctx); err != nil {
		return 0, err
	}
	switch o := o.(type) {
	case *model.Node:
		return s.putNode(ctx, o, at)
	case *model.Pool:
		return s.putPool(*o, at)
	case *model.Block:
		return s.fileBlock(ctx, o, at)
	}
	return 0, s.refuse(o.Kind(), o.Key())
}

// Delete implements store.Store. Of a node it takes away what Put wrote, never the Node object. Blocks that
// Kubernetes gave stay with their nodes: deleting one is nothing to do.
func (s *Store) Delete(ctx context.Context, kind model.Kind, key string, at store.Revision) error {
	if err := store.CheckKey(kind, key); err != nil {
		return err
	}
	if err := s.open(ctx); err != nil {
		return err
	}
	switch kind {
	case model.KindNode:
		return s.deleteNode(ctx, key, at)
	case model.KindPool:
		return s.deletePool(key, at)
	case model.KindBlock:
		return s.deleteBlock(ctx, key, at)
	}
	return s.refuse(kind, key)
}

// refuse says why nobody can write an object here. While the API server cannot be reached it says that: what
// writes a heartbeat shall learn it.
func (s *Store) refuse(kind model.Kind, key string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, src := range s.sources {
		if src.kind == model.KindNode && src.err != nil {
			return fmt.Errorf("%s %q: %w: %w", kind, key, store.ErrUnavailable, src.err)
		}
	}
	how := "use kubectl"
	switch kind {
	case model.KindHeartbeat:
		how = "Kubernetes watches its nodes itself"
	case model.KindEndpoint:
		how = "Kubernetes tells of its pods itself"
	}
	return fmt.Errorf("%s %q: %w: %s", kind, key, store.ErrUnsupported, how)
}

func (s *Store) open(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.usable(ctx)
}

func (s *Store) putNode(ctx context.Context, n *model.Node, at store.Revision) (store.Revision, error) {
	text, err := json.Marshal(n)
	if err != nil {
		return 0, err
	}
	if len(text) > maxNode {
		return 0, &model.FieldError{Noun: fmt.Sprintf("node %q", n.Name), Field: "size", Value: fmt.Sprint(len(text)), Want: fmt.Sprintf("at most %d bytes", maxNode)}
	}
	if err := s.await(ctx, model.KindNode); err != nil {
		return 0, err
	}
	have := s.objects[model.KindNode][n.Name].revision
	facts := s.nodes[n.Name]
	l, tell := lease(n, s.filed)
	s.mu.Unlock()
	switch {
	case facts == nil:
		return 0, fmt.Errorf("node %q: %w: the API server has no such Node object (heddle agent --node must be its name)", n.Name, store.ErrNotFound)
	case at != store.AnyRevision && at != have:
		return 0, fmt.Errorf("node %q: %w", n.Name, store.ErrConflict)
	}
	annotations := map[string]string{}
	if tell {
		if annotations, err = l.Annotations(); err != nil {
			return 0, err
		}
	}
	want := saidOf(annotations)
	want.node, want.written = string(text), time.Now().UTC().Format(time.RFC3339Nano)
	version, err := s.say(ctx, n.Name, facts, want, at)
	if err != nil {
		return 0, err
	}
	return s.learned(ctx, n.Name, version, want)
}

func (s *Store) deleteNode(ctx context.Context, name string, at store.Revision) error {
	if err := s.await(ctx, model.KindNode); err != nil {
		return err
	}
	v, there := s.objects[model.KindNode][name]
	facts := s.nodes[name]
	s.mu.Unlock()
	switch {
	case !there && at == store.AnyRevision:
		return nil
	case !there:
		return fmt.Errorf("node %q: %w", name, store.ErrNotFound)
	case at != store.AnyRevision && at != v.revision:
		return fmt.Errorf("node %q: %w", name, store.ErrConflict)
	case facts.said.node == "":
		return fmt.Errorf("node %q: %w: a flanneld's node goes with its Node object: kubectl delete node %s", name, store.ErrUnsupported, name)
	}
	version, err := s.say(ctx, name, facts, said{}, at)
	if err == nil {
		_, err = s.learned(ctx, name, version, said{})
	}
	if errors.Is(err, store.ErrNotFound) {
		return nil // the Node object went meanwhile
	}
	return err
}

// say writes the annotations, and returns the version of the Node object that has them. With a revision that is
// to be kept to, it is a conflict when the annotations are not those that are known, whatever else changed.
func (s *Store) say(ctx context.Context, name string, known *nodeFacts, want said, at store.Revision) (string, error) {
	version := known.version
	if at == store.AnyRevision {
		version = ""
	}
	for range attempts {
		n, err := s.patchAnnotations(ctx, name, want, version)
		if err == nil {
			return n.ResourceVersion, nil
		}
		if !apierrors.IsConflict(err) {
			return "", s.failed(ctx, name, err)
		}
		if version == "" {
			continue // the server itself was overtaken, again and again
		}
		var now corev1.Node
		ctx, cancel := context.WithTimeout(ctx, requestTimeout)
		err = s.clients.core.Get().Resource("nodes").Name(name).MaxRetries(0).Do(ctx).Into(&now)
		cancel()
		if err != nil {
			return "", s.failed(ctx, name, err)
		}
		if version = now.ResourceVersion; saidOf(now.Annotations) != known.said {
			break
		}
	}
	// Whoever tries again begins with what was learned until then.
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	_, _ = s.learned(ctx, name, version, want) // it is a conflict in any case
	return "", fmt.Errorf("node %q: %w", name, store.ErrConflict)
}

// patchAnnotations writes them as flanneld does, through the status of the Node object: so no agent needs the
// right to change anything else of it. What is empty goes.
func (s *Store) patchAnnotations(ctx context.Context, name string, want said, version string) (*corev1.Node, error) {
	annotations := map[string]*string{}
	for key, v := range want.fields() {
		annotations[key] = v
		if *v == "" {
			annotations[key] = nil
		}
	}
	m := map[string]any{"annotations": annotations}
	if version != "" {
		m["resourceVersion"] = version
	}
	return s.patch(ctx, name, types.MergePatchType, map[string]any{"metadata": m})
}

func (s *Store) patch(ctx context.Context, name string, how types.PatchType, what any) (*corev1.Node, error) {
	text, err := json.Marshal(what)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	n := &corev1.Node{}
	return n, s.clients.core.Patch(how).Resource("nodes").Name(name).SubResource("status").Body(text).MaxRetries(0).Do(ctx).Into(n)
}

// failed tells whether nothing is known of a write, or it was refused.
func (s *Store) failed(ctx context.Context, name string, err error) error {
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		return ctx.Err()
	case apierrors.IsNotFound(err):
		return fmt.Errorf("node %q: %w: its Node object is gone", name, store.ErrNotFound)
	case apierrors.IsForbidden(err):
		return fmt.Errorf("node %q: the API server does not let this agent patch nodes/status: %w", name, err)
	case passing(err), apierrors.IsUnauthorized(err):
		return fmt.Errorf("node %q: %w: %w", name, store.ErrUnavailable, explain(s.clients.host, "nodes", err))
	}
	return fmt.Errorf("node %q: %w", name, err)
}

// learned waits until this store has learned of a version of a Node object, and returns the revision of what
// that says. When it says something else by then, somebody wrote later, and nothing is known of what happened
// between.
func (s *Store) learned(ctx context.Context, name, version string, want said) (store.Revision, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	for {
		s.mu.Lock()
		facts, arrived, err := s.nodes[name], s.arrived, s.usable(context.Background())
		rev := s.objects[model.KindNode][name].revision
		s.mu.Unlock()
		switch {
		case err != nil:
			return 0, err
		case facts == nil:
			return 0, fmt.Errorf("node %q: %w: its Node object is gone", name, store.ErrNotFound)
		}
		order, err := resourceversion.CompareResourceVersion(facts.version, version)
		switch {
		case err != nil:
			return 0, fmt.Errorf("node %q: %w: %w", name, store.ErrUnavailable, err)
		case order >= 0 && facts.said == want:
			return rev, nil
		case order >= 0:
			return 0, fmt.Errorf("node %q: %w: somebody else wrote to it right after", name, store.ErrUnavailable)
		}
		select {
		case <-arrived:
		case <-s.done:
		case <-ctx.Done():
			return 0, fmt.Errorf("node %q: %w: the API server took the write, and has not told of it yet", name, store.ErrUnavailable)
		}
	}
}
