package deploy_test

import (
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/heddle-net/heddle/test/harness"
)

// capabilities are those that the manifest gives to the agent, in setpriv's words.
func capabilities(t *testing.T) []string {
	t.Helper()
	ds := find(t, objects(t, manifest), "DaemonSet", "heddle")
	containers, _, err := unstructured.NestedSlice(ds.Object, "spec", "template", "spec", "containers")
	if err != nil || len(containers) != 1 {
		t.Fatalf("containers: %v, %v", containers, err)
	}
	c := containers[0].(map[string]any)
	if privileged, _, _ := unstructured.NestedBool(c, "securityContext", "privileged"); privileged {
		t.Fatal("the agent is privileged")
	}
	drop, _, _ := unstructured.NestedStringSlice(c, "securityContext", "capabilities", "drop")
	add, _, _ := unstructured.NestedStringSlice(c, "securityContext", "capabilities", "add")
	if !slices.Equal(drop, []string{"ALL"}) || len(add) == 0 {
		t.Fatalf("drop %v, add %v", drop, add)
	}
	for i := range add {
		add[i] = strings.ToLower(add[i])
	}
	return add
}

// contained is the prefix of a command that runs it as runtimes run a container without privilege: with these
// capabilities and no others, none to be had by a program, and the kernel's settings read-only.
func contained(caps []string) []string {
	bounds := "-all,+" + strings.Join(caps, ",+")
	return []string{
		"unshare", "--mount", "--propagation", "private", "sh", "-c",
		"mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && exec setpriv --no-new-privs --bounding-set=" + bounds + ` "$@"`, "sh",
	}
}

func TestAgentWorksWithTheCapabilitiesOfTheManifest(t *testing.T) {
	harness.Root(t)
	a, b := pair(t)
	a.run("sysctl", "-q", "-w", "net.ipv4.ip_forward=0")
	caps := capabilities(t)
	a.installPlugin()
	a.start(contained(caps)...)
	b.start()
	a.ready(1)
	pod := a.add()
	if got := a.run("sysctl", "-n", "net.ipv4.ip_forward"); strings.TrimSpace(got) != "1" {
		t.Errorf("net.ipv4.ip_forward is %q: the agent could not write it", got)
	}
	harness.Run(t, "ip", "netns", "exec", pod, "ping", "-c", "1", "-W", "10", "192.168.9.1")
	if s := a.status(); len(s.Problems) > 0 {
		t.Errorf("problems: %v", s.Problems)
	}
}

// TestManifestGrantsNoCapabilityInVain: without either of the two that the kernel asks for, the agent says so and ends.
func TestManifestGrantsNoCapabilityInVain(t *testing.T) {
	harness.Root(t)
	a, _ := pair(t)
	caps := capabilities(t)
	for _, lacking := range []string{"net_admin", "sys_admin"} {
		rest := slices.DeleteFunc(slices.Clone(caps), func(c string) bool { return c == lacking })
		if len(rest) != len(caps)-1 {
			t.Fatalf("the manifest has %v", caps)
		}
		command := append(contained(rest), harness.Build(t).Heddle, "agent", "--node", "a", "--net-conf", a.file("net-conf.json"))
		_, err := a.try(append(append([]string{"timeout", "60"}, command...), a.dirs()...)...)
		if err == nil || !strings.Contains(err.Error(), "CAP_"+strings.ToUpper(lacking)) {
			t.Errorf("without %s: %v", lacking, err)
		}
	}
}
