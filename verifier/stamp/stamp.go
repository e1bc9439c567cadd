// Package stamp marks the requests that the verifier itself sends to the engine,
// so that the engine's authorization plugin (package lock) can tell them from
// everybody else's: an engine does not say who calls on a unix socket.
//
// A stamp is a MAC over method, URI and body under a key that is born with the
// process and never leaves it. It is good once, for Lifetime, and for the one
// request that it was made for. Packages engine and lock may use it.
package stamp

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"
)

// Header carries the stamp. Engines pass headers on to the plugin unless they
// begin with Authorization or X-Registry.
const Header = "X-Portcullis-Stamp"

// Lifetime is how old a stamp may be when the plugin sees it.
const Lifetime = 10 * time.Second

// maxOpen is how many requests may be under way between stamping and the plugin's look.
const maxOpen = 4096

// Reasons why a request to the engine is refused by the plugin.
const (
	ReasonMissing = "stamp-missing" // the caller is not the verifier
	ReasonBroken  = "stamp-broken"  // not a stamp, or its MAC is of another request or process
	ReasonUsed    = "stamp-used"    // it was good once already, or is too old
	ReasonBody    = "stamp-body"    // the engine has another body than the one that was stamped
)

// Error is a refusal with its typed reason.
type Error struct{ Reason, Detail string }

func (e *Error) Error() string { return e.Reason + ": " + e.Detail }

// Reason returns the typed reason in err, "" where there is none.
func Reason(err error) string {
	var e *Error
	if errors.As(err, &e) {
		return e.Reason
	}
	return ""
}

// Body says what a request carries.
type Body struct {
	kind   string
	digest [sha256.Size]byte
}

// NoBody is a request without a body.
func NoBody() Body { return Body{kind: "none"} }

// Bytes is a body that the plugin gets to see: JSON below 1 MiB.
func Bytes(b []byte) Body { return Body{"json", sha256.Sum256(b)} }

// Stream is a body that engines do not show to the plugin: the tar of a load. The
// verifier has read it before; the stamp says only that it is the sender.
func Stream() Body { return Body{kind: "stream"} }

// Press makes and checks stamps.
type Press struct {
	key [32]byte
	now func() time.Time

	mu   sync.Mutex
	open map[string]time.Time // stamps that were made and not yet seen
}

// New makes a press with a new key. now may not be nil.
func New(now func() time.Time) *Press {
	p := &Press{now: now, open: map[string]time.Time{}}
	rand.Read(p.key[:])
	return p
}

// Make stamps one request. uri is as it stands in the request line.
func (p *Press) Make(method, uri string, body Body) (string, error) {
	var nonce [16]byte
	rand.Read(nonce[:])
	n := hex.EncodeToString(nonce[:])
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.now()
	for old, t := range p.open {
		if now.Sub(t) > Lifetime {
			delete(p.open, old)
		}
	}
	if len(p.open) >= maxOpen {
		return "", fmt.Errorf("stamp: %d requests are under way", len(p.open))
	}
	p.open[n] = now
	return n + "." + body.kind + "." + hex.EncodeToString(body.digest[:]) + "." + p.mac(n, method, uri, body), nil
}

func (p *Press) mac(nonce, method, uri string, body Body) string {
	m := hmac.New(sha256.New, p.key[:])
	for _, s := range []string{"portcullis-stamp-1", nonce, method, uri, body.kind, string(body.digest[:])} {
		fmt.Fprintf(m, "%d:%s", len(s), s)
	}
	return hex.EncodeToString(m.Sum(nil))
}

// Use checks a stamp and makes it useless. seen is the body as the engine showed it.
func (p *Press) Use(method, uri, text string, seen []byte) error {
	nonce, body, err := p.parse(method, uri, text)
	if err != nil {
		return err
	}
	p.mu.Lock()
	made, ok := p.open[nonce]
	delete(p.open, nonce)
	p.mu.Unlock()
	if !ok || p.now().Sub(made) > Lifetime {
		return &Error{ReasonUsed, "the stamp was used before, or is older than " + Lifetime.String()}
	}
	switch {
	case body.kind != "json" && len(seen) != 0:
		return &Error{ReasonBody, fmt.Sprintf("%d bytes that were not stamped", len(seen))}
	case body.kind == "json" && Bytes(seen) != body:
		return &Error{ReasonBody, fmt.Sprintf("%d bytes, and not the ones that were stamped", len(seen))}
	}
	return nil
}

// Made tells whether a stamp is of this press and for this request, used or not:
// for the answer to a request, which comes whenever the engine has it.
func (p *Press) Made(method, uri, text string) error {
	_, _, err := p.parse(method, uri, text)
	return err
}

func (p *Press) parse(method, uri, text string) (nonce string, body Body, err error) {
	if text == "" {
		return "", body, &Error{ReasonMissing, "not a request of the verifier"}
	}
	parts := strings.Split(text, ".")
	if len(text) > 512 || len(parts) != 4 {
		return "", body, &Error{ReasonBroken, "not a stamp"}
	}
	digest, err := hex.DecodeString(parts[2])
	if err != nil || len(digest) != sha256.Size {
		return "", body, &Error{ReasonBroken, "not a stamp"}
	}
	body.kind = parts[1]
	copy(body.digest[:], digest)
	if !hmac.Equal([]byte(p.mac(parts[0], method, uri, body)), []byte(parts[3])) {
		return "", body, &Error{ReasonBroken, "made for another request, or by another process"}
	}
	return parts[0], body, nil
}
