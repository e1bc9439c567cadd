package result

import (
	"bytes"
	"crypto/ed25519"
	"crypto/hmac"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/go-jose/go-jose/v4"
	"github.com/veraison/go-cose"
)

// Reasons why a result is not believed.
const (
	ReasonMalformed = "token-malformed" // neither a JWT nor a CWT with these claims
	ReasonSignature = "token-signature" // not signed by the given key
	ReasonExpired   = "token-expired"   // its time is over
	ReasonFuture    = "token-future"    // issued later than now: one of the two clocks is wrong
	ReasonNonce     = "token-nonce"     // not an answer to this nonce
)

// Error is a result that is not believed; Reason is one of Reason*.
type Error struct {
	Reason string
	Detail string
}

func (e *Error) Error() string { return e.Reason + ": " + e.Detail }

func refuse(reason, format string, args ...any) *Error {
	return &Error{reason, fmt.Sprintf(format, args...)}
}

// MaxToken bounds a token in bytes.
const MaxToken = 128 << 10

// clockSkew is how much the verifier's clock may be behind the gateway's.
const clockSkew = time.Minute

var (
	encode = must(cbor.CoreDetEncOptions().EncMode())
	decode = must(cbor.DecOptions{DupMapKey: cbor.DupMapKeyEnforcedAPF, MaxNestedLevels: 8, MaxArrayElements: 1024,
		MaxMapPairs: 256, IndefLength: cbor.IndefLengthForbidden}.DecMode())
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err) // options that are constants
	}
	return v
}

// JWT signs the claims as a compact JWS (EdDSA, RFC 8037).
func (c *Claims) JWT(key ed25519.PrivateKey) (string, error) {
	payload, err := json.Marshal(c)
	if err != nil {
		return "", fmt.Errorf("result: %w", err)
	}
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.EdDSA, Key: key}, (&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		return "", fmt.Errorf("result: %w", err)
	}
	signed, err := s.Sign(payload)
	if err != nil {
		return "", fmt.Errorf("result: %w", err)
	}
	return signed.CompactSerialize()
}

// CWT signs the claims as a tagged COSE_Sign1 (RFC 9052 §4.2).
func (c *Claims) CWT(key ed25519.PrivateKey) ([]byte, error) {
	payload, err := encode.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("result: %w", err)
	}
	s, err := cose.NewSigner(cose.AlgorithmEdDSA, key)
	if err != nil {
		return nil, fmt.Errorf("result: %w", err)
	}
	headers := cose.Headers{Protected: cose.ProtectedHeader{cose.HeaderLabelAlgorithm: cose.AlgorithmEdDSA}}
	b, err := cose.Sign1(nil, s, headers, payload, nil)
	if err != nil {
		return nil, fmt.Errorf("result: %w", err)
	}
	return b, nil
}

// coseSign1 is the first byte of a tagged COSE_Sign1: CBOR tag 18.
const coseSign1 = 0xd2

// Verify checks a token, JWT or CWT, against the gateway's public key, now and,
// where one is given, the nonce that was asked with. An error is an *Error.
func Verify(token []byte, key ed25519.PublicKey, now time.Time, nonce []byte) (*Claims, error) {
	if len(token) == 0 || len(token) > MaxToken {
		return nil, refuse(ReasonMalformed, "%d bytes, want 1 to %d", len(token), MaxToken)
	}
	var c *Claims
	var err error
	if token[0] == coseSign1 {
		c, err = openCWT(token, key)
	} else {
		c, err = openJWT(string(bytes.TrimSuffix(token, []byte("\n"))), key)
	}
	if err != nil {
		return nil, err
	}
	if err := c.check(); err != nil {
		return nil, err
	}
	switch {
	case now.Add(clockSkew).Unix() < c.IssuedAt:
		return nil, refuse(ReasonFuture, "issued at %s, here it is %s", stamp(c.IssuedAt), stamp(now.Unix()))
	case now.Unix() >= c.Expires:
		return nil, refuse(ReasonExpired, "at %s, here it is %s", stamp(c.Expires), stamp(now.Unix()))
	case len(nonce) > 0 && !hmac.Equal(nonce, c.Nonce):
		return nil, refuse(ReasonNonce, "answers another question")
	}
	return c, nil
}

func stamp(seconds int64) string { return time.Unix(seconds, 0).UTC().Format(time.RFC3339) }

func openJWT(token string, key ed25519.PublicKey) (*Claims, error) {
	signed, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.EdDSA})
	if err != nil {
		return nil, refuse(ReasonMalformed, "%v", err)
	}
	payload, err := signed.Verify(key)
	if err != nil {
		return nil, refuse(ReasonSignature, "not signed by this gateway")
	}
	c := new(Claims)
	if err := json.Unmarshal(payload, c); err != nil {
		return nil, refuse(ReasonMalformed, "%v", err)
	}
	return c, nil
}

func openCWT(token []byte, key ed25519.PublicKey) (*Claims, error) {
	var signed cose.Sign1Message
	if err := signed.UnmarshalCBOR(token); err != nil {
		return nil, refuse(ReasonMalformed, "%v", err)
	}
	v, err := cose.NewVerifier(cose.AlgorithmEdDSA, key)
	if err != nil {
		return nil, refuse(ReasonSignature, "%v", err)
	}
	if err := signed.Verify(nil, v); err != nil {
		if errors.Is(err, cose.ErrVerification) {
			return nil, refuse(ReasonSignature, "not signed by this gateway")
		}
		return nil, refuse(ReasonMalformed, "%v", err)
	}
	c := new(Claims)
	if err := decode.Unmarshal(signed.Payload, c); err != nil {
		return nil, refuse(ReasonMalformed, "%v", err)
	}
	return c, nil
}

// check holds the claims to what Build makes: a result that says more than its
// tier allows is not one of ours, whoever signed it.
func (c *Claims) check() error {
	pc, ok := c.Submods[SubmodPC]
	gateway := c.Submods[SubmodGateway]
	switch {
	case c.Profile != Profile:
		return refuse(ReasonMalformed, "profile %.64q", c.Profile)
	case !ok || pc.PC == nil || gateway.Gateway == nil:
		return refuse(ReasonMalformed, "no appraisal of a PC and its gateway")
	case c.Expires <= c.IssuedAt:
		return refuse(ReasonExpired, "ends at %s, before it was issued", stamp(c.Expires))
	case pc.Vector != nil && pc.Vector.worst() > pc.Status:
		return refuse(ReasonMalformed, "status %v with a claim that is %v", pc.Status, pc.Vector.worst())
	case pc.Status == StatusAffirming && (pc.PC.Tier == "T0" || pc.PC.Tier == ""):
		return refuse(ReasonMalformed, "an affirming status at tier %.8q", pc.PC.Tier)
	}
	return nil
}
