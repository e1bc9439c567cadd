package protocol

import (
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"errors"
	"fmt"
)

// Labels of the two exporters (RFC 8446 §7.5, RFC 5705 §4). One exporter alone
// is the same for both ends, so that a reflected answer would fit; two labels,
// one a role, are hashed in a fixed order.
const (
	agentExporter   = "EXPORTER-portcullis-agent-v1"
	gatewayExporter = "EXPORTER-portcullis-gateway-v1"
	bindingLabel    = "portcullis-binding-v1"
)

// ErrBinding is a connection that evidence cannot be bound to. There is no
// weaker way to go on with.
var ErrBinding = errors.New("channel cannot be bound")

// Binding ties a claim and its evidence to one TLS connection between two keys
// in one boot session: SHA-512, 64 bytes (the size of REPORTDATA).
type Binding [64]byte

// BindInput is what Bind covers beside the connection's exporters.
type BindInput struct {
	AgentKey, GatewayKey     []byte // DER SubjectPublicKeyInfo of the two leaves
	Session                  string
	GatewayNonce, AgentNonce [32]byte
}

// Bind computes the binding. Both ends get the same value if and only if they
// are the two ends of the same TLS 1.3 connection.
func Bind(cs tls.ConnectionState, in BindInput) (Binding, error) {
	if cs.Version != tls.VersionTLS13 || !cs.HandshakeComplete || cs.DidResume {
		return Binding{}, fmt.Errorf("%w: not a full TLS 1.3 handshake", ErrBinding)
	}
	agent, err := cs.ExportKeyingMaterial(agentExporter, nil, 32)
	if err != nil {
		return Binding{}, fmt.Errorf("%w: %v", ErrBinding, err)
	}
	gateway, err := cs.ExportKeyingMaterial(gatewayExporter, nil, 32)
	if err != nil {
		return Binding{}, fmt.Errorf("%w: %v", ErrBinding, err)
	}
	return combine(agent, gateway, in), nil
}

func combine(agent, gateway []byte, in BindInput) (b Binding) {
	agentSPKI, gatewaySPKI := sha256.Sum256(in.AgentKey), sha256.Sum256(in.GatewayKey)
	h := sha512.New()
	writeField(h, []byte(bindingLabel))
	for _, f := range [][]byte{agent, gateway, agentSPKI[:], gatewaySPKI[:], []byte(in.Session), in.GatewayNonce[:], in.AgentNonce[:]} {
		writeField(h, f)
	}
	h.Sum(b[:0])
	return b
}
