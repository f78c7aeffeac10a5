package cert

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"time"
)

// Files names the PEM files of one end of a mutual TLS connection.
type Files struct {
	CA   string // who signed the other end
	Cert string // this end's certificate
	Key  string // and its key
}

// Empty reports whether no file is named: no TLS.
func (f Files) Empty() bool { return f == Files{} }

// Check reports a file that is not named, cannot be read or does not fit the others.
func (f Files) Check() error {
	if f.CA == "" || f.Cert == "" || f.Key == "" {
		return fmt.Errorf("mutual TLS needs three files: ca %q, cert %q, key %q", f.CA, f.Cert, f.Key)
	}
	if _, err := f.pool(); err != nil {
		return err
	}
	_, err := f.pair()
	return err
}

func (f Files) pool() (*x509.CertPool, error) {
	b, err := os.ReadFile(f.CA)
	if err != nil {
		return nil, err
	}
	p := x509.NewCertPool()
	if !p.AppendCertsFromPEM(b) {
		return nil, fmt.Errorf("%s: no PEM certificate in it", f.CA)
	}
	return p, nil
}

func (f Files) pair() (*tls.Certificate, error) {
	c, err := tls.LoadX509KeyPair(f.Cert, f.Key)
	if err != nil {
		return nil, fmt.Errorf("certificate %s with key %s: %w", f.Cert, f.Key, err)
	}
	return &c, nil
}

// ClientConfig is TLS 1.3 towards a server that Files.CA signed. The certificate is read anew at each
// handshake, so that a renewed one needs no restart. Cert and Key may be empty: a client that shows no
// certificate.
func (f Files) ClientConfig() (*tls.Config, error) {
	pool, err := f.pool()
	if err != nil {
		return nil, err
	}
	c := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: pool}
	if f.Cert == "" && f.Key == "" {
		return c, nil
	}
	if _, err := f.pair(); err != nil {
		return nil, err
	}
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return f.pair() }
	return c, nil
}

// ServerConfig is TLS 1.3 that refuses a client without a certificate that Files.CA signed.
func (f Files) ServerConfig() (*tls.Config, error) {
	if err := f.Check(); err != nil {
		return nil, err
	}
	pool, err := f.pool()
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion:     tls.VersionTLS13,
		ClientCAs:      pool,
		ClientAuth:     tls.RequireAndVerifyClientCert,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return f.pair() },
	}, nil
}

// Expiry tells when the first certificate in a PEM file ends.
func Expiry(file string) (time.Time, error) {
	c, err := readCert(file)
	if err != nil {
		return time.Time{}, err
	}
	return c.NotAfter, nil
}

func readCert(file string) (*x509.Certificate, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(b)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, fmt.Errorf("%s: no PEM certificate in it", file)
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return c, nil
}
