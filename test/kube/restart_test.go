//go:build kube

package kube

import (
	"context"
	"errors"
	"fmt"
	"net"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/heddle-net/heddle/test/kube/lab"
)

// containerd is killed and comes back: pods keep their network and their addresses, none is restarted, new ones are made,
// and those that end give their addresses back.
func TestContainerdIsRestartedWithoutAFailedRequest(t *testing.T) {
	ctx, l := up(t)
	pods := deploy(ctx, t, l, "web", false, 8080)
	loads := around(ctx, t, l, pods)
	before := podAddresses(ctx, t, l)
	for _, node := range l.Nodes() {
		killed := daemon(ctx, t, l, node, "containerd")
		if _, err := l.Exec(ctx, node, "kill", "-9", killed); err != nil {
			t.Fatal(err)
		}
		eventually(t, time.Minute, "containerd of "+node+" is there again", func() error {
			if now := daemon(ctx, t, l, node, "containerd"); now == "" || now == killed {
				return fmt.Errorf("process %q, before %s", now, killed)
			}
			_, err := l.Exec(ctx, node, "ctr", "version")
			return err
		})
	}
	fresh := deploy(ctx, t, l, "fresh", false, 8080)
	for _, load := range loads {
		load.end(t)
	}
	if now := podAddressesOf(ctx, t, l, "app=web"); !slices.Equal(now, before) {
		t.Errorf("the pods are\n%s\nbefore they were\n%s", strings.Join(now, "\n"), strings.Join(before, "\n"))
	}
	everyPodReachesEvery(ctx, t, l, slices.Concat(pods, fresh))
	kubectl(ctx, t, l, "delete", "daemonset", "fresh", "--cascade=foreground", "--wait")
	nothingIsLeftOver(ctx, t, l)
}

// A node loses its power and comes back: what ran on it has network again, with one address each and nothing left
// of those it had; the pods of the other node notice nothing but that its pods are away.
func TestANodeThatRebootsHasItsPodsAgain(t *testing.T) {
	ctx, l := up(t)
	pods := deploy(ctx, t, l, "web", false, 8080)
	deploy(ctx, t, l, "shut", false, 8080)
	if err := l.Apply(ctx, closed); err != nil {
		t.Fatal(err)
	}
	node := pods[1].node
	other := netnsOf(ctx, t, l, pods[0])
	service := strings.TrimSpace(kubectl(ctx, t, l, "get", "service", "web", "-o", "jsonpath={.spec.clusterIP}"))
	uids := kubectl(ctx, t, l, "get", "pods", "-o", "jsonpath={.items[*].metadata.uid}")
	if err := l.Reboot(node); err != nil {
		t.Fatal(err)
	}
	eventually(t, 5*time.Minute, "the agent of "+node+" is ready", func() error {
		_, err := agentAnswers(ctx, l, node, "/readyz")
		return err
	})
	eventually(t, 5*time.Minute, "the pods of "+node+" have network again", func() error {
		out, err := l.Kubectl(ctx, "get", "pods", "-A", "--field-selector=spec.nodeName="+node, "-o",
			`jsonpath={range .items[*]}{.metadata.name}{" "}{.status.conditions[?(@.type=="Ready")].status}{"\n"}{end}`)
		if err == nil && strings.Count(out, " True") != strings.Count(out, "\n") {
			err = fmt.Errorf("pods and whether they are ready:\n%s", out)
		}
		return errors.Join(err, addressesAreThoseOfPods(ctx, l, node))
	})
	if now := kubectl(ctx, t, l, "get", "pods", "-o", "jsonpath={.items[*].metadata.uid}"); now != uids {
		t.Errorf("the pods are %s, before the reboot they were %s", now, uids)
	}
	pods, shut := ofApp(ctx, t, l, "web"), ofApp(ctx, t, l, "shut")
	everyPodReachesEvery(ctx, t, l, pods)
	client := inside(other, false)
	eventually(t, time.Minute, "the Service answers", func() error {
		return get(ctx, client, "http://"+net.JoinHostPort(service, "80")+"/hostname")
	})
	client.Timeout = 2 * time.Second
	for _, to := range shut {
		eventually(t, time.Minute, "the policy holds for "+to.name, func() error {
			if get(ctx, client, urlOf(to.ips[0])) == nil {
				return fmt.Errorf("%s on %s answers a pod that its policy denies", to.name, to.node)
			}
			return nil
		})
	}
	deploy(ctx, t, l, "fresh", false, 8080)
	nothingIsLeftOver(ctx, t, l)
}

// around starts requests from each pod to the next, on new connections and on kept ones.
func around(ctx context.Context, t *testing.T, l *lab.Lab, pods []pod) (loads []*load) {
	t.Helper()
	for i, from := range pods {
		to := urlOf(pods[(i+1)%len(pods)].ips[0])
		ns := netnsOf(ctx, t, l, from)
		loads = append(loads, startLoad(t, ns, to, 20*time.Millisecond, false), startLoad(t, ns, to, 20*time.Millisecond, true))
	}
	return loads
}

func everyPodReachesEvery(ctx context.Context, t *testing.T, l *lab.Lab, pods []pod) {
	t.Helper()
	for _, from := range pods {
		ns := netnsOf(ctx, t, l, from)
		for _, to := range pods {
			eventually(t, time.Minute, from.name+" reaches "+to.name, func() error { return get(ctx, inside(ns, false), urlOf(to.ips[0])) })
		}
	}
}

// nothingIsLeftOver wants every node to hold an address and an interface for each of its pods, and no other.
func nothingIsLeftOver(ctx context.Context, t *testing.T, l *lab.Lab) {
	t.Helper()
	for _, node := range l.Nodes() {
		eventually(t, 2*time.Minute, "node "+node+" holds what its pods have and no more", func() error {
			given, err := workloads(ctx, l, node)
			if err != nil {
				return err
			}
			out, err := l.Exec(ctx, node, "ip", "-br", "link", "show", "type", "veth")
			if n := len(regexp.MustCompile(`(?m)^hd\S+@`).FindAllString(out, -1)); err == nil && n != len(given) {
				err = fmt.Errorf("%d interfaces for %d pods", n, len(given))
			}
			return errors.Join(err, addressesAreThoseOfPods(ctx, l, node))
		})
	}
}

// daemon is the process of one of the node's daemons, in the node's own numbers; "" for none.
func daemon(ctx context.Context, t *testing.T, l *lab.Lab, node, program string) string {
	t.Helper()
	out, _ := l.Exec(ctx, node, "pidof", program)
	return strings.TrimSpace(out)
}
