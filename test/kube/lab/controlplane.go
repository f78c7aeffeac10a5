package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// startControlPlane starts etcd, the API server, the controller manager and the scheduler, and waits
// until the API server answers and has made the default service account.
func (l *Lab) startControlPlane(ctx context.Context) error {
	pki := func(name string) string { return l.path("pki", name) }
	err := errors.Join(
		l.startControl("etcd", "--data-dir", l.path("etcd"), "--unsafe-no-fsync",
			"--listen-client-urls", "http://127.0.0.1:2379", "--advertise-client-urls", "http://127.0.0.1:2379",
			"--listen-peer-urls", "http://127.0.0.1:2380", "--initial-advertise-peer-urls", "http://127.0.0.1:2380",
			"--initial-cluster", "default=http://127.0.0.1:2380"),
		l.startControl("kube-apiserver", "--etcd-servers=http://127.0.0.1:2379",
			"--advertise-address="+l.controlPlane()[0].String(), "--secure-port=6443",
			"--tls-cert-file="+pki("apiserver.crt"), "--tls-private-key-file="+pki("apiserver.key"),
			"--client-ca-file="+pki("ca.crt"),
			"--kubelet-client-certificate="+pki("admin.crt"), "--kubelet-client-key="+pki("admin.key"),
			"--kubelet-certificate-authority="+pki("ca.crt"), "--kubelet-preferred-address-types=InternalIP",
			"--service-account-issuer=https://kubernetes.default.svc",
			"--service-account-key-file="+pki("sa.key.pub"), "--service-account-signing-key-file="+pki("sa.key"),
			"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", "--allow-privileged=true",
			"--service-cluster-ip-range="+l.join(serviceNet4, serviceNet6),
			"--requestheader-client-ca-file="+pki("front-ca.crt"), "--requestheader-allowed-names=front-proxy-client",
			"--requestheader-extra-headers-prefix=X-Remote-Extra-", "--requestheader-group-headers=X-Remote-Group",
			"--requestheader-username-headers=X-Remote-User",
			"--proxy-client-cert-file="+pki("front-proxy.crt"), "--proxy-client-key-file="+pki("front-proxy.key"),
			"--enable-aggregator-routing=true"))
	if err != nil {
		return err
	}
	if err := l.until(ctx, time.Minute, "the API server", func() error {
		_, err := l.Kubectl(ctx, "get", "--raw", "/readyz")
		return err
	}); err != nil {
		return err
	}
	manager := []string{
		"--use-service-account-credentials", "--service-account-private-key-file=" + pki("sa.key"),
		"--root-ca-file=" + pki("ca.crt"), "--cluster-signing-cert-file=" + pki("ca.crt"), "--cluster-signing-key-file=" + pki("ca.key"),
		"--allocate-node-cidrs", "--cluster-cidr=" + l.join(podNet4, podNet6),
		"--service-cluster-ip-range=" + l.join(serviceNet4, serviceNet6),
	}
	if l.Spec.DualStack {
		manager = append(manager, "--node-cidr-mask-size-ipv4=24", "--node-cidr-mask-size-ipv6=64")
	} else {
		manager = append(manager, "--node-cidr-mask-size=24")
	}
	return errors.Join(
		l.startControl("kube-controller-manager", append(manager, l.asItself("kube-controller-manager")...)...),
		l.startControl("kube-scheduler", l.asItself("kube-scheduler")...))
}

// asItself are the flags with which a component talks to the API server, as the only one of its kind.
func (l *Lab) asItself(name string) []string {
	config := l.path("pki", name+".kubeconfig")
	return []string{
		"--kubeconfig=" + config, "--authentication-kubeconfig=" + config, "--authorization-kubeconfig=" + config,
		"--leader-elect=false",
	}
}

func (l *Lab) startControl(name string, args ...string) error {
	argv := append([]string{"ip", "netns", "exec", l.namespace("cp"), l.bin(name)}, args...)
	return l.start(name, argv...)
}

// join lists a network of each of the lab's families.
func (l *Lab) join(v4, v6 netip.Prefix) string {
	nets := []string{v4.String()}
	if l.Spec.DualStack {
		nets = append(nets, v6.String())
	}
	return strings.Join(nets, ",")
}

// until asks until it gets nil, a process of the lab ends, or the limit is over.
func (l *Lab) until(ctx context.Context, limit time.Duration, what string, ask func() error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		err := ask()
		if err == nil {
			return nil
		}
		if dead := l.checkAlive(); dead != nil {
			return dead
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: not within %s: %w", what, limit, err)
		case <-time.After(200 * time.Millisecond):
		}
	}
}
