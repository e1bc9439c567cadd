package attack

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"errors"
	"fmt"
	"time"

	"portcullis/agent/claim"
	"portcullis/attestserver/protocol"
)

// Agent is the played agent's end of the agent channel.
type Agent struct {
	*protocol.Stream
	conn    *tls.Conn
	key     *claim.Key
	binding protocol.Binding // with the epoch in it
	started time.Time        // when its PC's kernel claims to have started
}

// RefusedError is a claim that was refused; Reason is the typed one.
type RefusedError struct{ Reason string }

func (e *RefusedError) Error() string { return "claim refused: " + e.Reason }

const handshakeLimit = 15 * time.Second

// Claim connects to address and claims the boot of facts with key, as a PC
// whose kernel started at started.
func (p *PC) Claim(ctx context.Context, address string, facts claim.Facts, key *claim.Key, started time.Time) (*Agent, error) {
	config, err := protocol.ClientConfig(key.Private(), facts.Gateway)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, handshakeLimit)
	defer cancel()
	raw, err := p.Host.Dial(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("attack: %w", err)
	}
	a := &Agent{conn: tls.Client(raw, config), key: key, started: started}
	a.Stream = protocol.NewStream(a.conn)
	deadline, _ := ctx.Deadline()
	a.conn.SetDeadline(deadline)
	if err = a.conn.HandshakeContext(ctx); err != nil {
		err = fmt.Errorf("attack: handshake: %w", err)
	} else {
		err = a.claim(facts)
	}
	if err != nil {
		a.Close()
		return nil, err
	}
	a.conn.SetDeadline(time.Time{})
	return a, nil
}

// Close ends the connection.
func (a *Agent) Close() error { return a.conn.NetConn().Close() }

func (a *Agent) claim(facts claim.Facts) error {
	m, err := a.Receive(protocol.MaxClaimFrame)
	if err != nil {
		return fmt.Errorf("attack: hello: %w", err)
	}
	hello := m.GetHello()
	c, binding, err := claim.New(facts, a.key, time.Since(a.started), hello, func(nonce [32]byte) (protocol.Binding, error) {
		return a.bind(facts, [32]byte(hello.Nonce), nonce)
	})
	if err != nil {
		return err
	}
	if err := a.Send(&protocol.Message{Body: &protocol.Message_Claim{Claim: c}}); err != nil {
		return err
	}
	if m, err = a.Receive(protocol.MaxClaimFrame); err != nil {
		return fmt.Errorf("attack: answer to the claim: %w", err)
	}
	if r := m.GetClaimResult(); r == nil || !r.Accepted {
		return &RefusedError{r.GetReason()}
	}
	secret, err := protocol.EpochSecret(a.conn.ConnectionState())
	if err != nil {
		return err
	}
	epoch, err := protocol.NextEpoch(a.key.Epoch(), facts.Session, secret, binding)
	if err != nil {
		return err
	}
	a.binding = epoch.Bind(binding)
	a.key.Advance(epoch)
	return nil
}

func (a *Agent) bind(facts claim.Facts, gatewayNonce, agentNonce [32]byte) (protocol.Binding, error) {
	own, err := protocol.SPKI(a.key.Public())
	if err != nil {
		return protocol.Binding{}, err
	}
	gateway, err := protocol.SPKI(facts.Gateway)
	if err != nil {
		return protocol.Binding{}, err
	}
	return protocol.Bind(a.conn.ConnectionState(), protocol.BindInput{
		AgentKey: own, GatewayKey: gateway, Session: facts.Session, GatewayNonce: gatewayNonce, AgentNonce: agentNonce,
	})
}

// Challenge waits for the next one.
func (a *Agent) Challenge(ctx context.Context) (*protocol.Challenge, error) {
	if deadline, ok := ctx.Deadline(); ok {
		a.conn.SetReadDeadline(deadline)
	}
	for {
		m, err := a.Receive(protocol.MaxFrame)
		if err != nil {
			return nil, fmt.Errorf("attack: challenge: %w", err)
		}
		switch body := m.Body.(type) {
		case *protocol.Message_Challenge:
			return body.Challenge, nil
		case *protocol.Message_Rekey:
			// A played agent keeps its connection.
		default:
			return nil, errors.New("attack: another message than a challenge")
		}
	}
}

// Evidence makes well-formed, rightly signed evidence in which every probe says
// that it could not run: a played PC has nothing to show.
func (a *Agent) Evidence(c *protocol.Challenge) *protocol.Evidence {
	now := time.Since(a.started)
	e := &protocol.Evidence{Id: c.Id, Sequence: c.Sequence, Previous: c.Previous, StartedMs: now.Milliseconds(), FinishedMs: now.Milliseconds() + 1}
	for _, op := range c.Ops {
		e.Results = append(e.Results, &protocol.OpResult{Name: op.Name, Digest: make([]byte, 32), Error: "played", FinishedUs: 1})
	}
	e.Signature = ed25519.Sign(a.key.Private(), protocol.EvidenceTranscript(protocol.ChallengeDigest(c), a.binding, e, make([][]byte, len(e.Results))))
	return e
}

// SendEvidence sends evidence as it is.
func (a *Agent) SendEvidence(e *protocol.Evidence) error {
	return a.Send(&protocol.Message{Body: &protocol.Message_Evidence{Evidence: e}})
}
