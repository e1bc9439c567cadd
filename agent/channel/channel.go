// Package channel is the agent's end of the agent channel: one outgoing TLS 1.3
// connection to the one gateway whose key the signed initrd pins, and the claim
// on it. agent/run is the only one that may call it, and lab/proxy, which plays an agent
// whose key was stolen.
package channel

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"

	"portcullis/agent/claim"
	"portcullis/attestserver/protocol"
)

// handshakeTime bounds everything from the dial to the answer to the claim. The
// gateway asks pxed in it.
const handshakeTime = 15 * time.Second

// keepAlive finds a gateway that went away while nothing was said.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: 2 * time.Second, Count: 3}

// RefusedError is a claim that the gateway refused; Reason is typed.
type RefusedError struct{ Reason string }

func (e *RefusedError) Error() string { return "claim refused: " + e.Reason }

// Conn is a connection on which the claim was accepted.
type Conn struct {
	*protocol.Stream
	tls     *tls.Conn
	Binding protocol.Binding // with the epoch in it
	Epoch   uint64           // its number
	Resumed bool             // the gateway knew this claim from before
	Notices bool             // the gateway takes Notices
}

// Dial connects, checks the gateway's key, claims, and takes key to the next
// epoch. Two calls with one key must not run at the same time.
func Dial(ctx context.Context, address string, facts claim.Facts, key *claim.Key) (*Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTime)
	defer cancel()
	config, err := protocol.ClientConfig(key.Private(), facts.Gateway)
	if err != nil {
		return nil, err
	}
	dialer := &tls.Dialer{NetDialer: &net.Dialer{Timeout: 3 * time.Second, KeepAliveConfig: keepAlive}, Config: config}
	raw, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("connect to gateway: %w", err)
	}
	c := &Conn{tls: raw.(*tls.Conn)}
	c.Stream = protocol.NewStream(c.tls)
	stop := context.AfterFunc(ctx, func() { c.tls.SetDeadline(time.Unix(1, 0)) })
	err = c.claim(facts, key)
	if !stop() {
		err = errors.Join(err, context.Cause(ctx))
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// Close ends the connection.
func (c *Conn) Close() error { return c.tls.NetConn().Close() }

func (c *Conn) claim(facts claim.Facts, key *claim.Key) error {
	m, err := c.Receive(protocol.MaxClaimFrame)
	if err != nil {
		return fmt.Errorf("read hello: %w", err)
	}
	hello := m.GetHello()
	uptime, err := claim.Uptime()
	if err != nil {
		return err
	}
	message, binding, err := claim.New(facts, key, uptime, hello, func(nonce [32]byte) (protocol.Binding, error) {
		return bind(c.tls.ConnectionState(), facts, key.Public(), [32]byte(hello.Nonce), nonce)
	})
	if err != nil {
		return err
	}
	if err := c.Send(&protocol.Message{Body: &protocol.Message_Claim{Claim: message}}); err != nil {
		return fmt.Errorf("send claim: %w", err)
	}
	if m, err = c.Receive(protocol.MaxClaimFrame); err != nil {
		return fmt.Errorf("read answer to claim: %w", err)
	}
	result := m.GetClaimResult()
	switch {
	case result == nil:
		return fmt.Errorf("read answer to claim: %w", protocol.ErrMalformed)
	case !result.Accepted:
		return &RefusedError{result.Reason}
	}
	secret, err := protocol.EpochSecret(c.tls.ConnectionState())
	if err != nil {
		return err
	}
	epoch, err := protocol.NextEpoch(key.Epoch(), facts.Session, secret, binding)
	if err != nil {
		return err
	}
	c.Binding, c.Epoch, c.Resumed, c.Notices = epoch.Bind(binding), epoch.Number, result.Resumed, hello.Notices
	key.Advance(epoch)
	return nil
}

func bind(cs tls.ConnectionState, facts claim.Facts, public ed25519.PublicKey, gatewayNonce, agentNonce [32]byte) (protocol.Binding, error) {
	agentKey, err := protocol.SPKI(public)
	if err != nil {
		return protocol.Binding{}, err
	}
	gatewayKey, err := protocol.SPKI(facts.Gateway)
	if err != nil {
		return protocol.Binding{}, err
	}
	return protocol.Bind(cs, protocol.BindInput{
		AgentKey: agentKey, GatewayKey: gatewayKey, Session: facts.Session,
		GatewayNonce: gatewayNonce, AgentNonce: agentNonce,
	})
}
