package channel

import (
	"context"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"

	"portcullis/attestserver/protocol"
	"portcullis/internal/readable"
)

// ClaimTime is what a caller has from the first byte to its claim.
const ClaimTime = 10 * time.Second

// WriteTime bounds one write to the agent.
const WriteTime = 5 * time.Second

// RefusedError is a connection that did not come to a valid claim. Reason is one
// of protocol.Claim*, or "channel-tls" where not even the handshake ended well.
type RefusedError struct {
	Reason string
	Err    error
}

func (e *RefusedError) Error() string { return fmt.Sprintf("%s: %v", e.Reason, e.Err) }
func (e *RefusedError) Unwrap() error { return e.Err }

// ReasonTLS is a handshake that failed.
const ReasonTLS = "channel-tls"

// Gateway is our side of every handshake.
type Gateway struct {
	config *tls.Config
	public ed25519.PublicKey
	spki   []byte
}

// NewGateway prepares the TLS side for the gateway's identity key.
func NewGateway(key ed25519.PrivateKey) (*Gateway, error) {
	config, err := protocol.ServerConfig(key)
	if err != nil {
		return nil, err
	}
	public := key.Public().(ed25519.PublicKey)
	spki, err := protocol.SPKI(public)
	if err != nil {
		return nil, err
	}
	return &Gateway{config: config, public: public, spki: spki}, nil
}

// Conn is a connection with a claim that is genuine: signed by the key of the
// TLS leaf, for this gateway and this connection. Whether the claim is granted
// has not been decided.
type Conn struct {
	*protocol.Stream
	Claim   *protocol.Claim
	Key     ed25519.PublicKey
	Binding protocol.Binding
	Remote  net.Addr

	secret     [32]byte // for the next epoch
	transcript []byte   // of the claim

	raw net.Conn
}

// Accept shakes hands on raw and reads the claim. It closes raw when it fails;
// the error is a *RefusedError.
func (g *Gateway) Accept(ctx context.Context, raw net.Conn) (*Conn, error) {
	raw.SetDeadline(time.Now().Add(ClaimTime))
	stop := context.AfterFunc(ctx, func() { raw.Close() })
	defer stop()
	c, err := g.accept(ctx, raw)
	if err != nil {
		raw.Close()
		return nil, err
	}
	raw.SetDeadline(time.Time{})
	return c, nil
}

func (g *Gateway) accept(ctx context.Context, raw net.Conn) (*Conn, error) {
	t := tls.Server(&recordConn{Conn: raw}, g.config)
	if err := t.HandshakeContext(ctx); err != nil {
		return nil, &RefusedError{ReasonTLS, err}
	}
	cs := t.ConnectionState()
	key, err := protocol.PeerKey(cs)
	if err != nil {
		return nil, &RefusedError{ReasonTLS, err}
	}
	c := &Conn{Stream: protocol.NewStream(&timedWriter{t}), Key: key, Remote: raw.RemoteAddr(), raw: raw}
	var nonce [32]byte
	if _, err := rand.Read(nonce[:]); err != nil {
		return nil, &RefusedError{ReasonTLS, err}
	}
	hello := &protocol.Hello{Version: protocol.Version, Nonce: nonce[:], Notices: true}
	if err := c.Send(&protocol.Message{Body: &protocol.Message_Hello{Hello: hello}}); err != nil {
		return nil, &RefusedError{protocol.ClaimTimeout, err}
	}
	if refused := c.readClaim(g, cs, nonce); refused != nil {
		c.Refuse(refused.Reason)
		return nil, refused
	}
	return c, nil
}

func (c *Conn) readClaim(g *Gateway, cs tls.ConnectionState, nonce [32]byte) *RefusedError {
	m, err := c.Receive(protocol.MaxClaimFrame)
	switch {
	case errors.Is(err, protocol.ErrFrame):
		return &RefusedError{protocol.ClaimMalformed, err}
	case err != nil:
		return &RefusedError{protocol.ClaimTimeout, err}
	}
	c.Claim = m.GetClaim()
	if err := c.Claim.Check(); err != nil {
		return &RefusedError{protocol.ClaimMalformed, err}
	}
	if !c.Key.Equal(ed25519.PublicKey(c.Claim.PublicKey)) {
		return &RefusedError{protocol.ClaimKey, errors.New("claims for another key than the connection's")}
	}
	agentKey, err := protocol.SPKI(c.Key)
	if err != nil {
		return &RefusedError{protocol.ClaimKey, err}
	}
	c.Binding, err = protocol.Bind(cs, protocol.BindInput{
		AgentKey: agentKey, GatewayKey: g.spki, Session: c.Claim.Session,
		GatewayNonce: nonce, AgentNonce: [32]byte(c.Claim.Nonce),
	})
	if err != nil {
		return &RefusedError{protocol.ClaimBinding, err}
	}
	c.transcript = protocol.ClaimTranscript(c.Claim, g.public, nonce, c.Binding)
	if !ed25519.Verify(c.Key, c.transcript, c.Claim.Signature) {
		return &RefusedError{protocol.ClaimSignature, errors.New("not signed for this connection by that key")}
	}
	if c.secret, err = protocol.EpochSecret(cs); err != nil {
		return &RefusedError{protocol.ClaimBinding, err}
	}
	return nil
}

// Shows tells whether the claim proves that its sender has the epoch.
func (c *Conn) Shows(e *protocol.Epoch) bool {
	proof := e.Proof(c.transcript)
	return c.Claim.Epoch == e.Number && hmac.Equal(c.Claim.Proof, proof[:])
}

// Next is the epoch that this connection makes of the one before it, nil for the first.
func (c *Conn) Next(before *protocol.Epoch) (*protocol.Epoch, error) {
	return protocol.NextEpoch(before, c.Claim.Session, c.secret, c.Binding)
}

// Refuse answers the claim with a typed reason and closes.
func (c *Conn) Refuse(reason string) {
	c.result(&protocol.ClaimResult{Reason: reason})
	c.Close()
}

// Grant answers the claim with yes.
func (c *Conn) Grant(resumed bool) error {
	return c.result(&protocol.ClaimResult{Accepted: true, Resumed: resumed})
}

func (c *Conn) result(r *protocol.ClaimResult) error {
	return c.Send(&protocol.Message{Body: &protocol.Message_ClaimResult{ClaimResult: r}})
}

// Wait returns when there is something to receive, or the connection has ended. Nothing of
// the message before may be unread. A message ends with its record (Stream.Send): what a
// caller puts behind one in the same record is received when more comes.
func (c *Conn) Wait() { readable.Wait(c.raw) }

// Close ends the connection at once, without a word.
func (c *Conn) Close() error { return c.raw.Close() }

// timedWriter bounds every write, so that a peer that reads nothing holds up
// nobody.
type timedWriter struct{ *tls.Conn }

func (w *timedWriter) Write(b []byte) (int, error) {
	if err := w.SetWriteDeadline(time.Now().Add(WriteTime)); err != nil {
		return 0, err
	}
	return w.Conn.Write(b)
}
