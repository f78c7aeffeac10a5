package lab

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"
)

// authority signs the certificates of one lab. internal/cert is for a store's mutual TLS and knows no
// organizations, which Kubernetes reads as groups.
type authority struct {
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// newAuthority makes NAME.crt and NAME.key in dir.
func newAuthority(dir, name string) (*authority, error) {
	template := &x509.Certificate{
		Subject:  pkix.Name{CommonName: name},
		IsCA:     true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	a := &authority{dir: dir}
	var err error
	if a.key, err = newKey(filepath.Join(dir, name+".key")); err != nil {
		return nil, err
	}
	a.cert, err = a.sign(name, template, template, a.key)
	return a, err
}

// leaf makes NAME.crt and NAME.key for both ends of TLS: who the holder is, and under which names and
// addresses it is called.
func (a *authority) leaf(name string, who pkix.Name, dns []string, ips ...netip.Addr) error {
	template := &x509.Certificate{
		Subject:     who,
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		DNSNames:    dns,
	}
	for _, ip := range ips {
		template.IPAddresses = append(template.IPAddresses, net.IP(ip.AsSlice()))
	}
	key, err := newKey(filepath.Join(a.dir, name+".key"))
	if err != nil {
		return err
	}
	_, err = a.sign(name, template, a.cert, key)
	return err
}

func (a *authority) sign(name string, template, parent *x509.Certificate, key *ecdsa.PrivateKey) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	template.SerialNumber = serial
	template.BasicConstraintsValid = true
	template.NotBefore = time.Now().Add(-time.Hour)
	template.NotAfter = time.Now().Add(365 * 24 * time.Hour)
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, a.key)
	if err != nil {
		return nil, fmt.Errorf("certificate %s: %w", name, err)
	}
	if err := writePEM(filepath.Join(a.dir, name+".crt"), "CERTIFICATE", der); err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// newKey makes a private key, and beside it the public one as FILE.pub, which the API server checks the
// tokens of service accounts with.
func newKey(file string) (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, err
	}
	public, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return nil, err
	}
	if err := writePEM(file+".pub", "PUBLIC KEY", public); err != nil {
		return nil, err
	}
	return key, writePEM(file, "EC PRIVATE KEY", der)
}

func writePEM(file, kind string, der []byte) error {
	return os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
}

// makeCertificates makes everything below DIR/pki: the cluster's authority, the one of the aggregation
// layer, the key of service accounts, and a certificate and kubeconfig for each component.
func (l *Lab) makeCertificates() error {
	dir := l.path("pki")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	ca, err := newAuthority(dir, "ca")
	if err != nil {
		return err
	}
	front, err := newAuthority(dir, "front-ca")
	if err != nil {
		return err
	}
	if _, err := newKey(filepath.Join(dir, "sa.key")); err != nil {
		return err
	}
	if err := front.leaf("front-proxy", pkix.Name{CommonName: "front-proxy-client"}, nil); err != nil {
		return err
	}
	names := []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"}
	addresses := append(l.controlPlane(), netip.MustParseAddr("127.0.0.1"), serviceNet4.Addr().Next(), serviceNet6.Addr().Next())
	if err := ca.leaf("apiserver", pkix.Name{CommonName: "kube-apiserver"}, names, addresses...); err != nil {
		return err
	}
	users := map[string]pkix.Name{
		"admin":                   {CommonName: "admin", Organization: []string{"system:masters"}},
		"kube-controller-manager": {CommonName: "system:kube-controller-manager"},
		"kube-scheduler":          {CommonName: "system:kube-scheduler"},
		"kube-proxy":              {CommonName: "system:kube-proxy"},
	}
	for name, who := range users {
		if err := ca.leaf(name, who, nil); err != nil {
			return err
		}
		if err := l.writeKubeconfig(name); err != nil {
			return err
		}
	}
	for i, node := range l.Nodes() {
		who := pkix.Name{CommonName: "system:node:" + node, Organization: []string{"system:nodes"}}
		if err := ca.leaf(node, who, []string{node}, l.NodeAddresses(i)...); err != nil {
			return err
		}
		if err := l.writeKubeconfig(node); err != nil {
			return err
		}
	}
	return nil
}

// writeKubeconfig writes DIR/pki/USER.kubeconfig.
func (l *Lab) writeKubeconfig(user string) error {
	return l.render("kubeconfig.yaml", l.path("pki", user+".kubeconfig"), map[string]any{
		"Server": fmt.Sprintf("https://%s:6443", l.controlPlane()[0]),
		"PKI":    l.path("pki"),
		"User":   user,
	})
}
