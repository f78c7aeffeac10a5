package kube

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/resourceversion"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/store"
)

const (
	// pageSize is how many whole objects are in memory at a time where the server does not stream lists.
	pageSize = 250
	// A server that is away is asked again after shortest, and later at most after longest; with jitter.
	shortest, longest = 500 * time.Millisecond, 10 * time.Second
	// patience is how long a server may refuse a kind that not everybody has before that kind counts as not
	// there: one that has just started refuses everything.
	patience = 10 * time.Second
)

// source is one kind of object of the API server that is followed.
type source struct {
	resource schema.GroupVersionResource
	kind     model.Kind // what becomes of its objects; empty: nothing, somebody only wants to hear of them
	prefix   string     // of the keys of what becomes of them, for resources
	selector string     // of fields
	optional bool

	list   func(context.Context, metav1.ListOptions) (runtime.Object, error)
	watch  func(context.Context, metav1.ListOptions) (watch.Interface, error)
	reduce func(runtime.Object) *thin
	heard  func(name string) // for one without a kind
	cancel context.CancelFunc

	// Of the reflector's goroutine alone.
	began  time.Time     // of the last stream
	lasts  time.Duration // of the last stream, as it was asked for
	failed bool          // since the last stream

	// Under the catalog's lock.
	synced, stopped bool
	err             error // why it cannot be followed now
	refused         time.Time
	denied          bool // it is refused, and nobody waits for it
}

func (src *source) feeds(k model.Kind) bool {
	return k == src.kind || k == model.KindBlock && src.kind == model.KindNode
}

// start follows a source until it is stopped.
func (s *Store) start(src *source) {
	ctx, cancel := context.WithCancel(s.ctx)
	src.cancel = cancel
	s.mu.Lock()
	s.sources = append(s.sources, src)
	s.wake()
	s.mu.Unlock()
	lw := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			return s.list(ctx, src, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			return s.watch(ctx, src, o)
		},
	}
	r := cache.NewReflectorWithOptions(lw, nil, &sink{s, src}, cache.ReflectorOptions{
		Name:    src.resource.Resource,
		Backoff: &wait.Backoff{Duration: shortest, Cap: longest, Steps: 6, Factor: 2, Jitter: 0.5},
	})
	r.MaxInternalErrorRetryDuration = time.Hour // see watch, which paces it
	s.loops.Go(func() { r.RunWithContext(ctx) })
}

// stop ends a source whose kind is served no more, and forgets what it told.
func (s *Store) stop(src *source) {
	src.cancel()
	s.mu.Lock()
	defer s.mu.Unlock()
	src.stopped = true
	s.sources = slices.DeleteFunc(s.sources, func(x *source) bool { return x == src })
	s.replace(src, nil)
	s.wake()
}

// list reads one page. It always asks for what is there now: an old page of a list comes from the memory of the
// server, which does not know pages.
func (s *Store) list(ctx context.Context, src *source, o metav1.ListOptions) (runtime.Object, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*requestTimeout)
	defer cancel()
	o.ResourceVersion, o.ResourceVersionMatch, o.FieldSelector = "", "", src.selector
	if o.Limit == 0 {
		o.Limit = pageSize
	}
	l, err := src.list(ctx, o)
	s.note(src, err)
	if err != nil {
		return nil, err
	}
	m, err := meta.ListAccessor(l)
	if err != nil {
		return nil, err
	}
	out := &internalversion.List{ListMeta: metav1.ListMeta{ResourceVersion: m.GetResourceVersion(), Continue: m.GetContinue()}}
	err = meta.EachListItem(l, func(o runtime.Object) error {
		out.Items = append(out.Items, src.reduce(o))
		return nil
	})
	return out, err
}

// watch opens a stream, and tries until that works or the server says why it will not. So a reflector goes on
// where it was after an outage, and does not read everything again.
func (s *Store) watch(ctx context.Context, src *source, o metav1.ListOptions) (watch.Interface, error) {
	o.FieldSelector = src.selector
	s.mu.Lock()
	denied := src.denied
	s.mu.Unlock()
	if denied && !store.Pause(ctx, jitter(2*lookEvery)) {
		return nil, ctx.Err()
	}
	alive := time.Since(src.began)
	if !src.began.IsZero() && alive < time.Second && !store.Pause(ctx, jitter(shortest)) {
		return nil, ctx.Err()
	}
	early := !src.began.IsZero() && alive < src.lasts-5*time.Second
	for delay := shortest; ; delay = min(2*delay, longest) {
		var err error
		if o.SendInitialEvents == nil && o.ResourceVersion != "" && (early || src.failed) {
			err = s.notOlder(ctx, src, o.ResourceVersion)
		}
		var w watch.Interface
		if err == nil {
			w, err = src.watch(ctx, o)
		}
		if err == nil {
			src.began, src.failed, src.lasts = time.Now(), false, 0
			if o.TimeoutSeconds != nil {
				src.lasts = time.Duration(*o.TimeoutSeconds) * time.Second
			}
			s.note(src, nil)
			return newThinning(w, src.reduce), nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		src.failed = true
		s.note(src, err)
		if !passing(err) {
			return nil, err
		}
		if !store.Pause(ctx, jitter(delay)) {
			return nil, ctx.Err()
		}
	}
}

func jitter(d time.Duration) time.Duration { return d/2 + rand.N(d/2) }

// notOlder refuses to go on from a version that the server has not reached: its data was put back to what it
// was before, and a watch from there would be told of nothing until that version comes again.
func (s *Store) notOlder(ctx context.Context, src *source, version string) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	l, err := src.list(ctx, metav1.ListOptions{Limit: 1, FieldSelector: src.selector})
	if err != nil {
		return err
	}
	m, err := meta.ListAccessor(l)
	if err != nil {
		return err
	}
	if order, err := resourceversion.CompareResourceVersion(m.GetResourceVersion(), version); err == nil && order < 0 {
		return apierrors.NewResourceExpired(fmt.Sprintf("the API server is at version %s, and was at %s: its data was put back", m.GetResourceVersion(), version))
	}
	return nil
}

// passing tells whether a request may work later as it is.
func passing(err error) bool {
	var status apierrors.APIStatus
	if !errors.As(err, &status) {
		return true // nobody answered
	}
	switch code := status.Status().Code; {
	case apierrors.HasStatusCause(err, metav1.CauseTypeResourceVersionTooLarge):
		return false
	case code == 429 || code >= 500:
		return true
	}
	return false
}

// note keeps why a source cannot be followed, and says it when that is news.
func (s *Store) note(src *source, err error) {
	if errors.Is(err, context.Canceled) || apierrors.IsResourceExpired(err) || apierrors.IsGone(err) ||
		apierrors.HasStatusCause(err, metav1.CauseTypeResourceVersionTooLarge) {
		return // an end, and a reason to read again
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	was := src.err
	switch {
	case err == nil:
		src.err, src.refused, src.denied = nil, time.Time{}, false
		if was != nil {
			s.log.Info("the API server answers again", "of", src.resource.Resource)
			s.wake()
		}
		return
	case src.optional && (apierrors.IsForbidden(err) || apierrors.IsNotFound(err)):
		if src.refused.IsZero() {
			src.refused = time.Now()
		}
		src.denied = time.Since(src.refused) > patience
	}
	src.err = explain(s.clients.host, src.resource.Resource, err)
	if was == nil || was.Error() != src.err.Error() {
		s.log.Warn("the API server cannot be followed; what was known stays", "of", src.resource.Resource, "reason", src.err)
	}
	s.wake()
}

// explain says in plain words what went wrong, where the error itself is long.
func explain(host, what string, err error) error {
	text := err.Error()
	switch {
	case apierrors.IsForbidden(err):
		return fmt.Errorf("the API server does not let this agent list and watch %s: its ClusterRole is too small", what)
	case apierrors.IsUnauthorized(err):
		return fmt.Errorf("the API server %s does not take this agent's credentials: %w", host, err)
	case strings.Contains(text, "connection refused"):
		return fmt.Errorf("no API server listens at %s: connection refused", host)
	case errors.Is(err, errSilence) || errors.Is(err, context.DeadlineExceeded) || strings.Contains(text, "i/o timeout"):
		return fmt.Errorf("the API server %s does not answer in time", host)
	case errors.Is(err, errLost) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || strings.Contains(text, "client connection lost"):
		return fmt.Errorf("the connection to the API server %s was lost", host)
	}
	return fmt.Errorf("the API server %s: %w", host, err)
}

// sink takes what a reflector learns.
type sink struct {
	s   *Store
	src *source
}

var _ cache.ReflectorStore = (*sink)(nil)

// Add implements cache.ReflectorStore.
func (k *sink) Add(o any) error { return k.take(o, false) }

// Update implements cache.ReflectorStore.
func (k *sink) Update(o any) error { return k.take(o, false) }

// Delete implements cache.ReflectorStore.
func (k *sink) Delete(o any) error { return k.take(o, true) }

// Resync implements cache.ReflectorStore; nobody asks for it.
func (k *sink) Resync() error { return nil }

func (k *sink) take(o any, gone bool) error {
	t, ok := o.(*thin)
	if !ok {
		return fmt.Errorf("%T came for %s", o, k.src.resource.Resource)
	}
	k.s.mu.Lock()
	defer k.s.mu.Unlock()
	if !k.src.stopped {
		k.s.take(k.src, t, gone)
	}
	return nil
}

// Replace implements cache.ReflectorStore: this is all there is.
func (k *sink) Replace(all []any, version string) error {
	list := make([]*thin, 0, len(all))
	for _, o := range all {
		if t, ok := o.(*thin); ok {
			list = append(list, t)
		}
	}
	k.s.mu.Lock()
	defer k.s.mu.Unlock()
	if k.src.stopped {
		return nil
	}
	k.s.replace(k.src, list)
	if k.src.kind == model.KindBlock {
		k.s.blocksAt = version // also a lower one, of a server whose data was put back
		k.s.wake()
	}
	if !k.src.synced {
		k.src.synced = true
		k.s.log.Info("the API server has told of everything", "of", k.src.resource.Resource, "count", len(list))
		k.s.wake()
	}
	return nil
}
