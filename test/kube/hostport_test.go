//go:build kube

package kube

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/heddle-net/heddle/test/kube/lab"
)

// listener has a port of its node for TCP and one for UDP.
const listener = `
apiVersion: v1
kind: Pod
metadata: {name: %[1]s}
spec:
  nodeName: %[2]s
  terminationGracePeriodSeconds: 0
  containers:
  - name: web
    image: lab.local/agnhost:2.63.0
    args: [netexec, --http-port=8080, --udp-port=8081]
    ports: [{containerPort: 8080, hostPort: 18080}, {containerPort: 8081, hostPort: 18081, protocol: UDP}]
    readinessProbe: {httpGet: {path: /hostname, port: 8080}, periodSeconds: 1}
`

// Ports of nodes beside kube-proxy, in each of its modes: from outside the cluster, from the other node and from a pod;
// also after kube-proxy has written all of its rules anew, and for the next pod that takes the port; and closed when
// that is gone.
func TestHostPortsBesideKubeProxy(t *testing.T) {
	for _, proxy := range []string{"nftables", "iptables"} {
		t.Run(proxy, func(t *testing.T) {
			ctx, l := up(t, func(s *lab.Spec) { s.Proxy = proxy })
			web := deploy(ctx, t, l, "web", false, 8080)
			const node = "n2"
			address := l.NodeAddresses(1)[0].String()
			from := map[string]string{"outside": "cp", "the other node": "n1"}
			answers := func(name string) {
				t.Helper()
				for who, machine := range from {
					eventually(t, time.Minute, name+" answers "+who, func() error { return listens(ctx, l, machine, address, name) })
				}
				client := inside(netnsOf(ctx, t, l, web[0]), false)
				eventually(t, time.Minute, name+" answers a pod", func() error { return get(ctx, client, "http://"+address+":18080/hostname") })
			}
			take := func(name string) {
				t.Helper()
				if err := l.Apply(ctx, fmt.Sprintf(listener, name, node)); err != nil {
					t.Fatal(err)
				}
				kubectl(ctx, t, l, "wait", "--for=condition=Ready", "pod/"+name, "--timeout=2m")
				answers(name)
			}
			take("one")
			killed := daemon(ctx, t, l, node, "kube-proxy")
			if _, err := l.Exec(ctx, node, "kill", "-9", killed); err != nil {
				t.Fatal(err)
			}
			// A Service that is new is in its rules once it has written them.
			if err := l.Apply(ctx, "apiVersion: v1\nkind: Service\nmetadata: {name: later}\nspec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}\n"); err != nil {
				t.Fatal(err)
			}
			later := "http://" + strings.TrimSpace(kubectl(ctx, t, l, "get", "service", "later", "-o", "jsonpath={.spec.clusterIP}")) + "/hostname"
			eventually(t, 2*time.Minute, "kube-proxy of "+node+" serves a new Service", func() error {
				_, err := l.Exec(ctx, node, "curl", "-sS", "-m", "2", "--fail", later)
				return err
			})
			answers("one")
			kubectl(ctx, t, l, "delete", "pod", "one")
			take("two")
			kubectl(ctx, t, l, "delete", "pod", "two")
			eventually(t, time.Minute, "the ports are closed", func() error {
				if listens(ctx, l, "cp", address, "two") == nil {
					return fmt.Errorf("somebody answers on %s", address)
				}
				_, err := l.Exec(ctx, "cp", "sh", "-c", "! curl -sS -m 2 http://$1:18080/hostname", "sh", address)
				return err
			})
		})
	}
}

// listens asks both ports of an address who is there.
func listens(ctx context.Context, l *lab.Lab, machine, address, name string) error {
	for _, ask := range []string{"curl -sS -m 5 --fail http://$1:18080/hostname", "echo hostname | timeout 5 nc -u -w 2 $1 18081"} {
		out, err := l.Exec(ctx, machine, "sh", "-c", ask, "sh", address)
		if err != nil {
			return err
		}
		if strings.TrimSpace(out) != name {
			return fmt.Errorf("%s: %q, want %q", ask, out, name)
		}
	}
	return nil
}
