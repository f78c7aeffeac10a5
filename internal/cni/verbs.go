package cni

import (
	"context"
	"fmt"
	"os"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/internal/cni/wire"
	"github.com/heddle-net/heddle/internal/model"
)

// Handle carries out one request and returns what the plugin prints. netns is nil when none was sent;
// the caller closes it.
func Handle(ctx context.Context, pods Pods, r wire.Request, netns *os.File) (out []byte, failed *Error) {
	version := types100.ImplementedSpecVersion
	defer func() {
		if failed != nil {
			out = errorResult(version, failed)
		}
	}()
	c, err := parseConf(r.Stdin)
	if err == nil {
		version = c.CNIVersion
	}
	if err := checkCommand(r); err != nil {
		return nil, err
	}
	if err != nil {
		return nil, err
	}
	if since, ok := map[string]string{"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}[r.Command]; ok && !c.atLeast(since) {
		return nil, Errorf(CodeIncompatibleVersion, "network %q: cniVersion %s: want %s or later for %s", c.Name, c.CNIVersion, since, r.Command)
	}
	switch r.Command {
	case "ADD":
		return add(ctx, pods, c, r, netns)
	case "DEL":
		if err := pods.Del(ctx, r.ContainerID, r.IfName); err != nil {
			return nil, asError(err)
		}
	case "CHECK":
		return nil, check(ctx, pods, c, r, netns)
	case "GC":
		keep, err := c.attachments()
		if err != nil {
			return nil, err
		}
		if err := pods.GC(ctx, c.Name, keep); err != nil {
			return nil, asError(err)
		}
	case "STATUS":
		if err := c.refuse(); err != nil {
			return nil, err
		}
		if err := pods.Ready(); err != nil {
			e := asError(err)
			if e.Code != CodeLimitedConnectivity {
				e.Code = CodeNotAvailable
			}
			return nil, e
		}
	}
	return nil, nil
}

// checkCommand checks the environment that the command needs.
func checkCommand(r wire.Request) *Error {
	switch r.Command {
	case "GC", "STATUS":
		return nil
	case "ADD", "DEL", "CHECK":
	default:
		return environment("CNI_COMMAND", fmt.Sprintf("%q", short(r.Command)), "ADD, DEL, CHECK, GC, STATUS or VERSION")
	}
	w := model.Workload{ContainerID: r.ContainerID, IfName: r.IfName}
	if err := w.Validate(); err != nil {
		return Errorf(CodeInvalidEnvironment, "%v", err)
	}
	return nil
}

func environment(name, value, want string) *Error {
	return Errorf(CodeInvalidEnvironment, "%v", &model.FieldError{Noun: "environment", Field: name, Value: value, Want: want})
}

func add(ctx context.Context, pods Pods, c *conf, r wire.Request, netns *os.File) ([]byte, *Error) {
	if err := c.refuse(); err != nil {
		return nil, err
	}
	if c.hasPrev() {
		return nil, Errorf(CodeInvalidConfig, "network %q: prevResult: want none: heddle makes the interface, so it must be the first plugin of the list", c.Name)
	}
	p, bad := parseArgs(r.Args)
	if bad != nil {
		return nil, bad
	}
	wishes, bad := c.wishes(&p)
	if bad != nil {
		return nil, bad
	}
	if err := checkNetns(r, netns); err != nil {
		return nil, err
	}
	if err := pods.Ready(); err != nil {
		return nil, Errorf(CodeTryAgainLater, "heddle cannot add pods now: %v", err)
	}
	w := model.Workload{
		ContainerID: r.ContainerID,
		IfName:      r.IfName,
		Namespace:   p.namespace,
		Name:        p.name,
		UID:         p.uid,
		Network:     c.Name,
		Labels:      c.Labels,
		HostPorts:   c.HostPorts,
		Bandwidth:   c.Bandwidth,
		Wishes:      wishes,
		Netns:       r.Netns,
	}
	a, err := pods.Add(ctx, w, netns)
	if err != nil {
		return nil, asError(err)
	}
	return result(c, a, r.Netns)
}

func check(ctx context.Context, pods Pods, c *conf, r wire.Request, netns *os.File) *Error {
	if err := c.refuse(); err != nil {
		return err
	}
	if err := checkNetns(r, netns); err != nil {
		return err
	}
	prev, bad := c.prevAddresses(r.IfName)
	if bad != nil {
		return bad
	}
	want := model.Workload{ContainerID: r.ContainerID, IfName: r.IfName, Addresses: prev, HostPorts: c.HostPorts, Bandwidth: c.Bandwidth}
	if err := pods.Check(ctx, want, netns); err != nil {
		return asError(err)
	}
	return nil
}

// checkNetns makes sure that the file is a network namespace, and not the agent's own.
func checkNetns(r wire.Request, netns *os.File) *Error {
	const want = "the path of a network namespace"
	switch {
	case r.Netns == "":
		return environment("CNI_NETNS", "", want)
	case r.NetnsError != "":
		return environment("CNI_NETNS", short(r.Netns), want+" ("+short(r.NetnsError)+")")
	case netns == nil:
		return environment("CNI_NETNS", short(r.Netns), want+" (it did not reach the agent)")
	}
	kind, err := unix.IoctlRetInt(int(netns.Fd()), unix.NS_GET_NSTYPE)
	if err != nil || kind != unix.CLONE_NEWNET {
		return environment("CNI_NETNS", short(r.Netns), want)
	}
	own, err := os.Stat("/proc/thread-self/ns/net")
	if err != nil {
		return Errorf(CodeIO, "own network namespace: %v", err)
	}
	theirs, err := netns.Stat()
	if err != nil {
		return Errorf(CodeIO, "CNI_NETNS %s: %v", short(r.Netns), err)
	}
	if os.SameFile(own, theirs) {
		return Errorf(CodeInvalidNetns, "environment: CNI_NETNS %s: want a namespace other than the node's own", short(r.Netns))
	}
	return nil
}
