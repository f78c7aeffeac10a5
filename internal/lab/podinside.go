package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/containernetworking/cni/libcni"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// PodAddInside is `heddle lab pod-add`: inside a node's namespaces it does what a container runtime
// does, a network namespace and CNI ADD. It reads a Pod as JSON and answers with one that has
// addresses.
func PodAddInside(ctx context.Context, in io.Reader, out io.Writer) error {
	var p Pod
	if err := json.NewDecoder(in).Decode(&p); err != nil {
		return fmt.Errorf("pod: %w", err)
	}
	conf, err := networkConf(p)
	if err != nil {
		return err
	}
	ns := filepath.Join(netnsDir, p.Name)
	if err := makeNetns(ns); err != nil {
		return fmt.Errorf("network namespace %s: %w", ns, err)
	}
	result, err := libcni.NewCNIConfig([]string{filepath.Dir(insideCNI)}, nil).AddNetworkList(ctx, conf, runtimeConf(p))
	if err != nil {
		return errors.Join(fmt.Errorf("cni ADD: %w", err), removeNetns(ns))
	}
	res, err := types100.NewResultFromResult(result)
	if err != nil {
		return fmt.Errorf("cni ADD: result: %w", err)
	}
	for _, ip := range res.IPs {
		if a, ok := netip.AddrFromSlice(ip.Address.IP); ok {
			p.Addresses = append(p.Addresses, a.Unmap())
		}
	}
	return json.NewEncoder(out).Encode(p)
}

// PodDelInside is `heddle lab pod-del`: CNI DEL, and the namespace's end.
func PodDelInside(ctx context.Context, in io.Reader) error {
	var p Pod
	if err := json.NewDecoder(in).Decode(&p); err != nil {
		return fmt.Errorf("pod: %w", err)
	}
	conf, err := networkConf(p)
	if err != nil {
		return err
	}
	if err := libcni.NewCNIConfig([]string{filepath.Dir(insideCNI)}, nil).DelNetworkList(ctx, conf, runtimeConf(p)); err != nil {
		return fmt.Errorf("cni DEL: %w", err)
	}
	return removeNetns(filepath.Join(netnsDir, p.Name))
}

// networkConf takes the first configuration in the directory, by name, as runtimes do, and adds the pod's
// labels as CNI's conventions have them: args.cni.labels.
func networkConf(p Pod) (*libcni.NetworkConfigList, error) {
	files, err := libcni.ConfFiles(cniConfDir, []string{".conflist"})
	if err != nil {
		return nil, fmt.Errorf("cni configuration: %w", err)
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("cni configuration: no .conflist in %s: the agent is not ready", cniConfDir)
	}
	conf, err := libcni.ConfListFromFile(files[0])
	if err != nil {
		return nil, fmt.Errorf("cni configuration %s: %w", files[0], err)
	}
	if len(p.Labels) == 0 {
		return conf, nil
	}
	type label struct {
		Key   string `json:"key"`
		Value string `json:"value"`
	}
	labels := []label{}
	for _, l := range p.Labels {
		key, value, _ := strings.Cut(l, "=")
		labels = append(labels, label{key, value})
	}
	for i, plugin := range conf.Plugins {
		conf.Plugins[i], err = libcni.InjectConf(plugin, map[string]any{"args": map[string]any{"cni": map[string]any{"labels": labels}}})
		if err != nil {
			return nil, fmt.Errorf("cni configuration %s: %w", files[0], err)
		}
	}
	return conf, nil
}

func runtimeConf(p Pod) *libcni.RuntimeConf {
	namespace := p.Namespace
	if namespace == "" {
		namespace = defaultNamespace
	}
	return &libcni.RuntimeConf{
		ContainerID: p.ContainerID,
		NetNS:       filepath.Join(netnsDir, p.Name),
		IfName:      "eth0",
		Args:        [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", namespace}, {"K8S_POD_NAME", p.own()}},
	}
}

// makeNetns makes a network namespace that lives on as a bind mount on the file, as `ip netns add`
// does, with its loopback up.
func makeNetns(file string) (err error) {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(file))
		}
	}()
	if err := f.Close(); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() {
		// The thread ends with this goroutine, because it stays locked: nothing else ever runs in
		// the new namespace.
		runtime.LockOSThread()
		done <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return err
			}
			lo, err := netlink.LinkByName("lo")
			if err != nil {
				return err
			}
			if err := netlink.LinkSetUp(lo); err != nil {
				return err
			}
			return unix.Mount("/proc/thread-self/ns/net", file, "", unix.MS_BIND, "")
		}()
	}()
	return <-done
}

func removeNetns(file string) error {
	if err := unix.Unmount(file, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount %s: %w", file, err)
	}
	if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
