// Package cert makes and loads the certificates of a store's mutual TLS: one authority, and leaves for
// servers, members and agents. Keys are ECDSA P-256 (FIPS 186-5), certificates X.509 v3 (RFC 5280).
//
// It keeps everything in plain PEM files: ca.crt, ca.key, NAME.crt, NAME.key. Keys are readable by
// their owner alone.
package cert

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/heddle-net/heddle/internal/model"
)

// Default validities. A leaf is short so that a lost key does not live on; the authority outlives
// many leaves.
const (
	CAValidity   = 10 * 365 * 24 * time.Hour
	LeafValidity = 365 * 24 * time.Hour
)

// skew is how far back a certificate is dated, for machines whose clocks differ.
const skew = 5 * time.Minute

// Kind is what a leaf may be used for.
type Kind string

// The kinds of leaves.
const (
	Server Kind = "server" // a store, towards agents
	Client Kind = "client" // an agent, towards the store
	Peer   Kind = "peer"   // a member of a store of several members: server and client at once
)

// Options are what few callers need; the zero value is the default.
type Options struct {
	// Validity is how long the certificate holds: 10 years for an authority, 1 year for a leaf when 0.
	Validity time.Duration
	// Overwrite replaces files that are there already; without it they are an error.
	Overwrite bool
}

// Request says what a leaf stands for.
type Request struct {
	// Name is the leaf's common name and the name of its files: RFC 1123, such as "node-a".
	Name string
	Kind Kind
	// Hosts are the IP addresses and DNS names by which others reach it; needed for server and peer.
	Hosts []string
}

// MakeCA makes an authority in dir (made with mode 0700 when it is not there): ca.crt and ca.key.
// It refuses to replace one, with an error that errors.Is fs.ErrExist.
func MakeCA(dir string, o Options) error {
	tmpl, err := template("Heddle store authority", o.Validity, CAValidity)
	if err != nil {
		return err
	}
	tmpl.IsCA, tmpl.BasicConstraintsValid = true, true
	tmpl.MaxPathLenZero = true // it signs leaves only
	tmpl.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	key, err := newKey()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return write(dir, "ca", tmpl, tmpl, key, key, o.Overwrite)
}

// Issue makes a leaf that the authority in dir signs: NAME.crt and NAME.key beside it.
// It refuses to replace one, with an error that errors.Is fs.ErrExist.
func Issue(dir string, r Request, o Options) error {
	if err := r.validate(); err != nil {
		return err
	}
	ca, caKey, err := loadCA(dir)
	if err != nil {
		return err
	}
	tmpl, err := template(r.Name, o.Validity, LeafValidity)
	if err != nil {
		return err
	}
	if tmpl.NotAfter.After(ca.NotAfter) {
		if o.Validity != 0 || time.Now().After(ca.NotAfter) {
			return &model.FieldError{Noun: fmt.Sprintf("certificate %q", r.Name), Field: "validity", Value: tmpl.NotAfter.Format(time.RFC3339), Want: "an end not after that of its authority, " + ca.NotAfter.Format(time.RFC3339)}
		}
		tmpl.NotAfter = ca.NotAfter
	}
	tmpl.KeyUsage = x509.KeyUsageDigitalSignature
	if r.Kind != Client {
		tmpl.ExtKeyUsage = append(tmpl.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	if r.Kind != Server {
		tmpl.ExtKeyUsage = append(tmpl.ExtKeyUsage, x509.ExtKeyUsageClientAuth)
	}
	for _, h := range r.Hosts {
		if ip := net.ParseIP(h); ip != nil {
			tmpl.IPAddresses = append(tmpl.IPAddresses, ip)
		} else {
			tmpl.DNSNames = append(tmpl.DNSNames, h)
		}
	}
	key, err := newKey()
	if err != nil {
		return err
	}
	return write(dir, r.Name, tmpl, ca, key, caKey, o.Overwrite)
}

func (r *Request) validate() error {
	if !model.ValidName(r.Name) || r.Name == "ca" {
		return &model.FieldError{Noun: "certificate", Field: "name", Value: r.Name, Want: "a lower-case RFC 1123 name other than ca"}
	}
	noun := fmt.Sprintf("certificate %q", r.Name)
	switch r.Kind {
	case Server, Peer:
		if len(r.Hosts) == 0 {
			return &model.FieldError{Noun: noun, Field: "hosts", Want: "the addresses or names by which others reach this " + string(r.Kind)}
		}
	case Client:
	default:
		return &model.FieldError{Noun: noun, Field: "kind", Value: string(r.Kind), Want: "server, client or peer"}
	}
	for _, h := range r.Hosts {
		if net.ParseIP(h) == nil && !model.ValidName(h) {
			return &model.FieldError{Noun: noun, Field: "hosts", Value: fmt.Sprintf("%.64q", h), Want: "an IP address or a DNS name"}
		}
	}
	return nil
}

func template(name string, validity, standard time.Duration) (*x509.Certificate, error) {
	if validity == 0 {
		validity = standard
	}
	if validity < time.Second {
		return nil, &model.FieldError{Noun: fmt.Sprintf("certificate %q", name), Field: "validity", Value: validity.String(), Want: "at least 1s"}
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	now := time.Now()
	return &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{Organization: []string{"Heddle"}, CommonName: name},
		NotBefore:    now.Add(-skew),
		NotAfter:     now.Add(validity),
	}, nil
}

func newKey() (*ecdsa.PrivateKey, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

func loadCA(dir string) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	ca, err := readCert(filepath.Join(dir, "ca.crt"))
	if err != nil {
		return nil, nil, fmt.Errorf("certificate authority: %w", err)
	}
	name := filepath.Join(dir, "ca.key")
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, nil, fmt.Errorf("certificate authority: %w", err)
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, nil, fmt.Errorf("certificate authority: %s: no PEM block", name)
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, nil, fmt.Errorf("certificate authority: %s: %w", name, err)
	}
	key, ok := k.(*ecdsa.PrivateKey)
	if !ok || !key.PublicKey.Equal(ca.PublicKey) {
		return nil, nil, fmt.Errorf("certificate authority: %s: not the ECDSA key of %s", name, filepath.Join(dir, "ca.crt"))
	}
	return ca, key, nil
}

// write signs and files a certificate with its key. The key comes first: a certificate on disk always
// has its key.
func write(dir, name string, tmpl, parent *x509.Certificate, key, signer *ecdsa.PrivateKey, overwrite bool) error {
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, &key.PublicKey, signer)
	if err != nil {
		return fmt.Errorf("certificate %q: %w", name, err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("certificate %q: %w", name, err)
	}
	crtFile, keyFile := filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key")
	if !overwrite {
		for _, f := range []string{crtFile, keyFile} {
			if _, err := os.Lstat(f); err == nil {
				return fmt.Errorf("certificate %q: %w", name, &os.PathError{Op: "create", Path: f, Err: os.ErrExist})
			} else if !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
	}
	if err := writeFile(keyFile, 0o600, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), overwrite); err != nil {
		return err
	}
	return writeFile(crtFile, 0o644, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), overwrite)
}

// writeFile makes the file whole or not at all, also when the machine stops midway.
func writeFile(name string, mode os.FileMode, data []byte, overwrite bool) error {
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+".*")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }() // gone already after a rename
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err != nil {
		return err
	}
	if overwrite {
		return os.Rename(f.Name(), name)
	}
	return os.Link(f.Name(), name) // fails when the name is taken
}
