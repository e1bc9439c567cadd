package protocol

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"time"
)

// ErrPin is a gateway that has another key than the one in the signed initrd.
var ErrPin = errors.New("gateway key is not the pinned one")

// ErrPeerKey is a peer whose certificate carries no Ed25519 key.
var ErrPeerKey = errors.New("peer key is not Ed25519")

// Certificate wraps key in a self-signed certificate. Nobody reads more of it
// than the key: trust comes from the pin (agent's side) and from the claim
// (gateway's side). The PC's clock may be anywhere, so it has no real validity.
func Certificate(key ed25519.PrivateKey) (tls.Certificate, error) {
	t := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "portcullis"},
		NotBefore:    time.Unix(0, 0),
		NotAfter:     time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC), // RFC 5280 §4.1.2.5: no well-defined end
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("certificate: %w", err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}

// ServerConfig is the gateway's side: TLS 1.3 only, no tickets, any Ed25519
// client key; which key it is decides the claim.
func ServerConfig(key ed25519.PrivateKey) (*tls.Config, error) {
	cert, err := Certificate(key)
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		Certificates:           []tls.Certificate{cert},
		ClientAuth:             tls.RequireAnyClientCert,
		SessionTicketsDisabled: true,
		NextProtos:             []string{alpn},
		// Behind records that grow little by little the reader's buffer doubles again and again:
		// it ends at some 40 KiB a connection, where one for the largest has 18.
		DynamicRecordSizingDisabled: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			_, err := PeerKey(cs)
			return err
		},
	}, nil
}

// ClientConfig is the agent's side: TLS 1.3 only, the peer must have exactly
// the key gateway.
func ClientConfig(key ed25519.PrivateKey, gateway ed25519.PublicKey) (*tls.Config, error) {
	cert, err := Certificate(key)
	if err != nil {
		return nil, err
	}
	pin, err := x509.MarshalPKIXPublicKey(gateway)
	if err != nil {
		return nil, fmt.Errorf("gateway key: %w", err)
	}
	return &tls.Config{
		MinVersion:                  tls.VersionTLS13,
		Certificates:                []tls.Certificate{cert},
		SessionTicketsDisabled:      true,
		NextProtos:                  []string{alpn},
		DynamicRecordSizingDisabled: true, // as there
		// There is no chain to verify: VerifyConnection compares the key itself.
		InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			if len(cs.PeerCertificates) == 0 ||
				subtle.ConstantTimeCompare(cs.PeerCertificates[0].RawSubjectPublicKeyInfo, pin) != 1 {
				return ErrPin
			}
			return nil
		},
	}, nil
}

const alpn = "portcullis-agent/1"

// PeerKey returns the Ed25519 key of the peer's leaf.
func PeerKey(cs tls.ConnectionState) (ed25519.PublicKey, error) {
	if len(cs.PeerCertificates) == 0 {
		return nil, ErrPeerKey
	}
	k, ok := cs.PeerCertificates[0].PublicKey.(ed25519.PublicKey)
	if !ok {
		return nil, ErrPeerKey
	}
	return k, nil
}

// SPKI returns the DER SubjectPublicKeyInfo of an Ed25519 key (RFC 8410 §4).
func SPKI(key ed25519.PublicKey) ([]byte, error) { return x509.MarshalPKIXPublicKey(key) }
