package cni

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"slices"
	"testing"

	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/heddle-net/heddle/internal/cni/wire"
	"github.com/heddle-net/heddle/internal/model"
)

// strictPods fails the test when something unvalidated comes through.
type strictPods struct{ t *testing.T }

func (p strictPods) Ready() error { return nil }

func (p strictPods) Add(context.Context, model.Workload, *os.File) (Attached, error) {
	p.t.Error("ADD came through without a namespace")
	return Attached{}, nil
}

func (p strictPods) Del(_ context.Context, containerID, ifName string) error {
	w := model.Workload{ContainerID: containerID, IfName: ifName}
	if err := w.Validate(); err != nil {
		p.t.Errorf("DEL came through: %v", err)
	}
	return errors.New("fails")
}

func (p strictPods) Check(context.Context, model.Workload, *os.File) error {
	p.t.Error("CHECK came through without a namespace")
	return nil
}

func (p strictPods) GC(_ context.Context, network string, keep map[string]bool) error {
	if !model.ValidContainerID(network) {
		p.t.Errorf("GC came through for network %q", network)
	}
	return nil
}

// FuzzServerRequest: whatever a frame's payload holds, the answer is empty or one JSON object, and
// nothing unvalidated reaches Pods.
func FuzzServerRequest(f *testing.F) {
	for _, command := range []string{"ADD", "DEL", "CHECK", "GC", "STATUS", "x"} {
		r := wire.Request{Command: command, ContainerID: "c", Netns: "/x", IfName: "eth0", Args: "IgnoreUnknown=1", Stdin: []byte(`{"cniVersion":"1.1.0","name":"n","cni.dev/attachments":[{"containerID":"a","ifname":"b"}]}`)}
		f.Add(r.AppendFrame(nil)[wire.HeaderSize:])
	}
	f.Fuzz(func(t *testing.T, payload []byte) {
		r, err := wire.ParseRequest(payload)
		if err != nil {
			return
		}
		out, failed := Handle(t.Context(), strictPods{t}, r, nil)
		checkOutput(t, out, failed)
	})
}

// FuzzConf is the same for the configuration alone, with good names around it.
func FuzzConf(f *testing.F) {
	for _, conf := range []string{
		`{"cniVersion":"1.1.0","name":"n","dns":{"nameservers":["a"]},"capabilities":{"x":true},"runtimeConfig":{"a":[1]}}`,
		`{"cniVersion":"0.4.0","name":"n","prevResult":{"cniVersion":"0.4.0","interfaces":[{"name":"eth0","sandbox":"x"}],"ips":[{"version":"4","interface":0,"address":"10.1.1.2/24"}]}}`,
		`{"cniVersion":"1.1.0","name":"n","cni.dev/valid-attachments":null}`,
		`{"cniVersion":"1.1.0","name":"n","capabilities":{"portMappings":true},"runtimeConfig":{"portMappings":[{"hostPort":80,"containerPort":8080,"protocol":"tcp","hostIP":"::"}]}}`,
		`{"cniVersion":"1.1.0","name":"n","runtimeConfig":{"bandwidth":{"ingressRate":10000000,"ingressBurst":4294967295,"egressRate":1000}}}`,
		`{"cniVersion":"1.1.0","name":"n","args":{"cni":{"labels":[{"key":"app","value":"web"},{"key":"example.org/tier","value":""}]}}}`,
	} {
		f.Add([]byte(conf))
	}
	f.Fuzz(func(t *testing.T, stdin []byte) {
		for _, command := range []string{"ADD", "DEL", "CHECK", "GC", "STATUS"} {
			out, failed := Handle(t.Context(), strictPods{t}, wire.Request{Command: command, ContainerID: "c", IfName: "eth0", Stdin: stdin}, nil)
			checkOutput(t, out, failed)
		}
		if c, err := parseConf(stdin); err == nil {
			if addrs, err := c.prevAddresses("eth0"); err == nil && len(addrs) == 0 {
				t.Error("a result without addresses was taken")
			}
			if c.refuse() == nil {
				for k, v := range c.Labels {
					if len(validation.IsQualifiedName(k))+len(validation.IsValidLabelValue(v)) > 0 {
						t.Errorf("label %q=%q was taken", k, v)
					}
				}
				checkCapabilities(t, c)
			}
		}
	})
}

// checkCapabilities wants what a kernel can be told.
func checkCapabilities(t *testing.T, c *conf) {
	t.Helper()
	for i, p := range c.HostPorts {
		if p.HostPort == 0 || p.ContainerPort == 0 || !slices.Contains(model.HostPortProtocols, p.Protocol) || p.HostIP.Zone() != "" || p.HostIP.Is4In6() {
			t.Errorf("host port %+v was taken", p)
		}
		if i > 0 && (c.HostPorts[i-1].Compare(p) >= 0 || c.HostPorts[i-1].Collides(p)) {
			t.Errorf("host ports %v", c.HostPorts)
		}
	}
	if b := c.Bandwidth; b != nil {
		for _, d := range [][2]uint64{{b.IngressRate, b.IngressBurst}, {b.EgressRate, b.EgressBurst}} {
			if d[0] == 0 && d[1] != 0 || d[0] != 0 && (d[0] < minRate || d[0] > maxRate) || d[1]/8 > 1<<32-1 {
				t.Errorf("bandwidth %+v was taken", *b)
			}
		}
	}
}

func FuzzArgs(f *testing.F) {
	f.Add("IgnoreUnknown=1;K8S_POD_NAMESPACE=a;K8S_POD_NAME=b;X=y")
	f.Fuzz(func(t *testing.T, s string) {
		p, err := parseArgs(s)
		if err != nil {
			return
		}
		for _, v := range []string{p.namespace, p.name} {
			if v != "" && !argRE.MatchString(v) {
				t.Errorf("%q was taken", v)
			}
		}
	})
}

func checkOutput(t *testing.T, out []byte, failed *Error) {
	t.Helper()
	if failed == nil {
		if len(out) != 0 {
			t.Errorf("output %s", out)
		}
		return
	}
	var got struct {
		CNIVersion string
		Code       uint
		Msg        string
	}
	if err := json.Unmarshal(out, &got); err != nil || got.Code == 0 || got.Msg == "" || got.CNIVersion == "" {
		t.Errorf("output %s, error %v", out, err)
	}
}
