// Package store is the typed seam to what the cluster shares: etcd (embedded or not), Flannel's etcd
// layout, memory for tests.
//
// A store never decides anything: it files objects, and tells when they change.
package store

import (
	"context"
	"errors"
	"net/netip"

	"github.com/heddle-net/heddle/internal/model"
)

// Revision numbers a state of the whole store; it only grows. 0 stands for "not there".
type Revision int64

// AnyRevision in Put and Delete means: whatever is there, or not there.
const AnyRevision Revision = -1

// Errors that callers tell apart with errors.Is.
var (
	ErrNotFound = errors.New("not found")
	// ErrConflict: the object is not at the revision that the caller saw.
	ErrConflict = errors.New("changed by somebody else")
	// ErrUnavailable: the store cannot be reached now; nothing is known about the write.
	ErrUnavailable = errors.New("store unavailable")
	// ErrUnsupported: this store's layout has no place for such an object.
	ErrUnsupported = errors.New("not supported by this store")
)

// Item is an object with the revision of its last change.
type Item struct {
	Object   model.Object
	Revision Revision
}

// EventType is what happened to an object.
type EventType int

// The event types.
const (
	EventPut EventType = iota
	EventDelete
	// EventResync carries no object: history was compacted or the connection lost for too long. The
	// reader must List again; the watch goes on from the revision in the event.
	EventResync
)

// Event is one change. For EventDelete, Object has only what its key tells.
type Event struct {
	Type     EventType
	Kind     model.Kind
	Key      string
	Object   model.Object // nil for EventDelete and EventResync
	Revision Revision
	// Anew, of an EventResync: the store was put back or is another one, so that what had a revision
	// before may be something else at the same one.
	Anew bool
}

// KeyRevision is an object's key with the revision of its last change.
type KeyRevision struct {
	Key      string
	Revision Revision
}

// Placed is a store that knows by itself which addresses a node has, as Kubernetes does.
type Placed interface {
	// Endpoint is where the store is reached, for people.
	Endpoint() string

	// NodeAddresses are those by which others reach the node; nil when the store knows none.
	NodeAddresses(node string) []netip.Addr
}

// Readier is a store that keeps, beside the node's own entry, whether pods can be added there.
type Readier interface {
	// NetworkReady tells that pods can be added on the node, or why not.
	NetworkReady(ctx context.Context, node string, why error) error
}

// Store files objects. Implementations are safe for concurrent use. Every object is validated before
// it is written; one that does not decode or validate when read is left out and logged, never fatal.
type Store interface {
	// Get returns ErrNotFound when there is no such object.
	Get(ctx context.Context, kind model.Kind, key string) (Item, error)

	// List returns all objects of the kinds as they were at one revision of the store, kind by kind, each
	// sorted by key, and that revision: a Watch from there misses nothing and repeats nothing.
	List(ctx context.Context, kinds ...model.Kind) ([]Item, Revision, error)

	// Keys returns the keys of the kind that begin with a text, sorted, also those of objects that List
	// leaves out. It costs much less than List.
	Keys(ctx context.Context, kind model.Kind, prefix string) ([]KeyRevision, error)

	// Watch delivers changes of the kinds after revision `from`, in order, until ctx ends; then the
	// channel is closed. It reconnects by itself.
	Watch(ctx context.Context, from Revision, kinds ...model.Kind) (<-chan Event, error)

	// Put writes the object if its present revision is `at` (0: only if it is not there), else
	// ErrConflict. It returns the new revision.
	Put(ctx context.Context, o model.Object, at Revision) (Revision, error)

	// Delete removes the object if its present revision is `at`, else ErrConflict; ErrNotFound when
	// it is not there (with AnyRevision: nil).
	Delete(ctx context.Context, kind model.Kind, key string, at Revision) error

	// Close ends all watches and frees the connection.
	Close() error
}
