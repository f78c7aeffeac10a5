package lab

import (
	"bytes"
	"context"
	"embed"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"text/template"
	"time"

	"sigs.k8s.io/yaml"
)

//go:embed files
var files embed.FS

// rendered fills in one of the files of this package.
func rendered(name string, values map[string]any) (string, error) {
	t, err := template.New(name).Option("missingkey=error").ParseFS(files, "files/"+name)
	if err != nil {
		return "", err
	}
	var b bytes.Buffer
	err = t.Execute(&b, values)
	return b.String(), err
}

func (l *Lab) render(name, file string, values map[string]any) error {
	text, err := rendered(name, values)
	if err == nil {
		err = os.WriteFile(file, []byte(text), 0o600)
	}
	return err
}

// install installs the lab's network.
func (l *Lab) install(ctx context.Context) error {
	switch l.Spec.Network {
	case Heddle:
		manifests, err := l.Manifests()
		if err != nil {
			return err
		}
		if err := l.Apply(ctx, manifests); err != nil {
			return err
		}
		l.step("Heddle is applied")
		return nil
	case Reference:
		return l.installReference(ctx)
	}
	return nil
}

// Manifests are those that install Heddle in this lab: of Spec.Manifest, with the lab's networks and
// Spec.Backend in net-conf.json.
func (l *Lab) Manifests() (string, error) {
	var text []byte
	info, err := os.Stat(l.Spec.Manifest)
	if err == nil && info.IsDir() {
		text, err = exec.Command(l.bin("kubectl"), "kustomize", l.Spec.Manifest).Output()
	} else if err == nil {
		text, err = os.ReadFile(l.Spec.Manifest)
	}
	if err != nil {
		return "", fmt.Errorf("manifest: %w", err)
	}
	return withNetConf(string(text), l.netConf())
}

// netConf is the net-conf.json of the lab's networks.
func (l *Lab) netConf() map[string]any {
	backend := l.Spec.Backend
	if backend == "" {
		backend = "vxlan"
	}
	c := map[string]any{"Network": podNet4.String(), "Backend": map[string]any{"Type": backend}}
	if l.Spec.DualStack {
		c["EnableIPv6"], c["IPv6Network"] = true, podNet6.String()
	}
	return c
}

// withNetConf replaces net-conf.json in the one ConfigMap that has it.
func withNetConf(manifests string, conf map[string]any) (string, error) {
	documents := strings.Split(manifests, "\n---\n")
	for i, d := range documents {
		var object map[string]any
		if err := yaml.Unmarshal([]byte(d), &object); err != nil {
			return "", fmt.Errorf("manifest, document %d: %w", i+1, err)
		}
		data, _ := object["data"].(map[string]any)
		if _, ok := data["net-conf.json"]; !ok || object["kind"] != "ConfigMap" {
			continue
		}
		text, err := json.Marshal(conf)
		if err != nil {
			return "", err
		}
		data["net-conf.json"] = string(text)
		out, err := yaml.Marshal(object)
		if err != nil {
			return "", err
		}
		documents[i] = string(out)
		return strings.Join(documents, "\n---\n"), nil
	}
	return "", fmt.Errorf("manifest: no ConfigMap has net-conf.json")
}

// installReference configures the reference plugins on every node, and the routes between the nodes.
func (l *Lab) installReference(ctx context.Context) error {
	for i, node := range l.Nodes() {
		out, err := l.Kubectl(ctx, "get", "node", node, "-o", "jsonpath={.spec.podCIDRs[*]}")
		if err != nil {
			return err
		}
		var ranges, routes []any
		for f, net := range strings.Fields(out) {
			ranges = append(ranges, []any{map[string]any{"subnet": net}})
			routes = append(routes, map[string]any{"dst": []string{"0.0.0.0/0", "::/0"}[f]})
			for _, other := range l.Nodes() {
				if other == node {
					continue
				}
				if err := l.route(other, net, l.NodeAddresses(i)[f].String()); err != nil {
					return err
				}
			}
		}
		conf, err := json.Marshal(map[string]any{"cniVersion": "1.0.0", "name": "reference", "plugins": []any{
			map[string]any{
				"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
				"ipam": map[string]any{"type": "host-local", "ranges": ranges, "routes": routes},
			},
			map[string]any{"type": "portmap", "capabilities": map[string]any{"portMappings": true}},
		}})
		if err != nil {
			return err
		}
		cmd, err := l.Command(ctx, node, "sh", "-c", "cat >/etc/cni/net.d/.new && mv /etc/cni/net.d/.new /etc/cni/net.d/10-reference.conflist")
		if err != nil {
			return err
		}
		cmd.Stdin = bytes.NewReader(conf)
		if _, err := output(cmd); err != nil {
			return err
		}
	}
	return nil
}

// startDNS installs CoreDNS and waits until it is there.
func (l *Lab) startDNS(ctx context.Context) error {
	text, err := rendered("coredns.yaml", map[string]any{"DNS": dnsAddress})
	if err != nil {
		return err
	}
	if err := l.Apply(ctx, text); err != nil {
		return err
	}
	if err := l.wait(ctx, 2*time.Minute, "condition=Available", "-n", "kube-system", "deployment/coredns"); err != nil {
		pods, _ := l.Kubectl(ctx, "describe", "pods", "-n", "kube-system")
		return fmt.Errorf("%w\n%s", err, pods)
	}
	l.step("CoreDNS answers")
	return nil
}
