package etcd

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/heddle-net/heddle/internal/store"
)

// explain turns an error of etcd's client into one that the store's callers tell apart. ctx is the
// caller's own.
func (s *Store) explain(ctx context.Context, doing string, err error) error {
	if err == nil {
		return nil
	}
	if cause := ctx.Err(); errors.Is(cause, context.Canceled) {
		return fmt.Errorf("%s: %w", doing, cause)
	}
	if !unavailable(err) {
		return fmt.Errorf("%s: %w", doing, err)
	}
	return &unavailableError{doing, s.reason(ctx, err), err}
}

// reason says once why a call had no success: in the words of the store where it said something, else by
// what became of the connections.
func (s *Store) reason(ctx context.Context, err error) string {
	said := ""
	if r, ok := ctx.Value(reasonKey{}).(*reason); ok {
		said = r.last()
	}
	if text, ok := strings.CutPrefix(said, "etcdserver: "); ok {
		return text
	}
	if list := s.faults.list(s.endpoints); list != "" {
		return list
	}
	switch {
	case said != "":
		return said
	case errors.Is(err, context.DeadlineExceeded), status.Code(err) == codes.DeadlineExceeded:
		return "no answer in time"
	}
	return err.Error()
}

// unavailableError is a store.ErrUnavailable that keeps its cause for errors.Is and tells only the reason.
type unavailableError struct {
	doing, reason string
	cause         error
}

func (e *unavailableError) Error() string {
	return e.doing + ": " + store.ErrUnavailable.Error() + ": " + e.reason
}

func (e *unavailableError) Unwrap() []error { return []error{store.ErrUnavailable, e.cause} }

// unavailable tells what a later attempt, or another member, may cure.
func unavailable(err error) bool {
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return true
	}
	code := codes.Unknown
	var ee rpctypes.EtcdError
	if errors.As(err, &ee) {
		code = ee.Code()
	} else if s, ok := status.FromError(err); ok {
		code = s.Code()
	}
	switch code {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled, codes.Aborted:
		return true
	case codes.Unknown:
		return strings.Contains(err.Error(), "client connection is closing")
	}
	return false
}

// reason keeps why the last attempt of a call failed. etcd's client tries again until the time is
// over, and then tells only that it is over.
type reason struct {
	mu   sync.Mutex
	text string
}

type reasonKey struct{}

func (r *reason) last() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.text
}

func withReason(ctx context.Context) context.Context {
	return context.WithValue(ctx, reasonKey{}, &reason{})
}

// rememberReason is a grpc.UnaryClientInterceptor inside of etcd's own, which retries.
func rememberReason(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	err := invoke(ctx, method, req, reply, cc, opts...)
	r, ok := ctx.Value(reasonKey{}).(*reason)
	if s, isStatus := status.FromError(err); err != nil && ok && isStatus && (s.Code() == codes.Unavailable || s.Code() == codes.DeadlineExceeded) {
		r.mu.Lock()
		r.text = s.Message()
		r.mu.Unlock()
	}
	return err
}
