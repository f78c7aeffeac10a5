// Package cni speaks the Container Network Interface (spec 1.1.0 back to 0.3.1): it turns what a
// runtime sends by the plugin into calls on Pods, and answers in the runtime's version.
//
// The plugin, cmd/heddle-cni, only carries bytes: environment, standard input and the open network
// namespace go over a root-only Unix socket to the agent; standard output and exit code come back.
package cni

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/heddle-net/heddle/internal/model"
)

// Pods is what the agent offers to runtimes. Errors that are a *Error keep their CNI code; any other
// becomes code 999, a deadline 11 (spec: plugin-specific codes are 100 and up).
type Pods interface {
	// Ready is nil when pods can be added, and otherwise says why they cannot.
	Ready() error
	// Add attaches a workload; the same key again returns what it already has, if the interface is
	// there. w has the names and Netns path; the result has everything.
	Add(ctx context.Context, w model.Workload, netns *os.File) (Attached, error)
	// Del detaches; an unknown workload is success.
	Del(ctx context.Context, containerID, ifName string) error
	// Check compares reservation, kernel and what the runtime believes. want has the names, the host ports and the
	// bandwidth, as for Add, and the addresses that Add once answered.
	Check(ctx context.Context, want model.Workload, netns *os.File) error
	// GC detaches every workload of the network whose key is not in keep.
	GC(ctx context.Context, network string, keep map[string]bool) error
}

// Codes of the specification ("Error", spec 1.1.0) that Heddle uses.
const (
	CodeIncompatibleVersion = types.ErrIncompatibleCNIVersion
	CodeUnsupportedField    = types.ErrUnsupportedField
	CodeUnknownContainer    = types.ErrUnknownContainer
	CodeInvalidEnvironment  = types.ErrInvalidEnvironmentVariables
	CodeIO                  = types.ErrIOFailure
	CodeDecode              = types.ErrDecodingFailure
	CodeInvalidConfig       = types.ErrInvalidNetworkConfig
	CodeInvalidNetns        = types.ErrInvalidNetNS
	CodeTryAgainLater       = types.ErrTryAgainLater
	CodeNotAvailable        = types.ErrPluginNotAvailable
	CodeLimitedConnectivity = types.ErrLimitedConnectivity
	// CodeDiffers is Heddle's own: CHECK found something else than ADD had made.
	CodeDiffers  uint = 100
	CodeInternal      = types.ErrInternal
)

// Error is an error with a CNI code. Msg is what people read; Details may hold more.
type Error struct {
	Code    uint
	Msg     string
	Details string
}

func (e *Error) Error() string {
	if e.Details == "" {
		return e.Msg
	}
	return e.Msg + ": " + e.Details
}

// Errorf makes an *Error.
func Errorf(code uint, format string, args ...any) *Error {
	return &Error{Code: code, Msg: fmt.Sprintf(format, args...)}
}

// asError finds the *Error in err, or makes one of it: a time-out is "try again later", anything else
// code 999.
func asError(err error) *Error {
	var e *Error
	switch {
	case errors.As(err, &e) && error(e) == err: //nolint:errorlint // whether anything is wrapped around it
		return &Error{Code: e.Code, Msg: e.Msg, Details: e.Details}
	case e != nil: // keep what was wrapped around it: it says for which workload
		return &Error{Code: e.Code, Msg: err.Error()}
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return Errorf(CodeTryAgainLater, "%v", err)
	}
	return Errorf(CodeInternal, "%v", err)
}

// Attached is the answer to Add.
type Attached struct {
	Workload  model.Workload
	Addresses []netip.Prefix
	Gateways  []netip.Addr   // same order as Addresses
	Routes    []netip.Prefix // by the gateway of their family
}
