package kube

import (
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/heddle-net/heddle/internal/model"
)

// thin is what is left of an object when it has arrived.
type thin struct {
	namespace, name, version string
	synced                   bool         // of a bookmark: everything that was there has been told
	key                      string       // of object; may be set where there is none
	object                   model.Object // nil: it is not of interest, or wrong
	uid                      types.UID    // of a Block, and when it was made
	made                     time.Time
	node                     *nodeFacts
	wrong                    error // why there is no object
}

// GetObjectMeta is for reflectors, which want to know name and version.
func (t *thin) GetObjectMeta() metav1.Object {
	m := &metav1.ObjectMeta{Namespace: t.namespace, Name: t.name, ResourceVersion: t.version}
	if t.synced {
		m.Annotations = map[string]string{metav1.InitialEventsAnnotationKey: "true"}
	}
	return m
}

// GetObjectKind implements runtime.Object.
func (t *thin) GetObjectKind() schema.ObjectKind { return schema.EmptyObjectKind }

// DeepCopyObject implements runtime.Object.
func (t *thin) DeepCopyObject() runtime.Object { c := *t; return &c }

// thinning is a stream whose objects are reduced as they arrive. (watch.Filter never ends when it is stopped
// while nobody reads.)
type thinning struct {
	from   watch.Interface
	reduce func(runtime.Object) *thin
	to     chan watch.Event
	stop   sync.Once
	done   chan struct{}
}

func newThinning(from watch.Interface, reduce func(runtime.Object) *thin) *thinning {
	t := &thinning{from: from, reduce: reduce, to: make(chan watch.Event), done: make(chan struct{})}
	go t.run()
	return t
}

// Stop implements watch.Interface.
func (t *thinning) Stop() {
	t.stop.Do(func() {
		close(t.done)
		t.from.Stop()
	})
}

// ResultChan implements watch.Interface.
func (t *thinning) ResultChan() <-chan watch.Event { return t.to }

// run ends when the stream does, which Stop sees to.
func (t *thinning) run() {
	defer close(t.to)
	for e := range t.from.ResultChan() {
		switch e.Type {
		case watch.Added, watch.Modified, watch.Deleted:
			e.Object = t.reduce(e.Object)
		case watch.Bookmark:
			m, err := meta.Accessor(e.Object)
			if err != nil {
				continue
			}
			e.Object = &thin{version: m.GetResourceVersion(), synced: m.GetAnnotations()[metav1.InitialEventsAnnotationKey] == "true"}
		}
		select {
		case t.to <- e:
		case <-t.done:
			return
		}
	}
}
