package action

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"portcullis/attestserver/policy"
)

// WebhookSchema names the form of a webhook's body.
const WebhookSchema = "portcullis.webhook.v1"

// Headers of a webhook.
const (
	HeaderID        = "Portcullis-Id"
	HeaderTimestamp = "Portcullis-Timestamp" // Unix seconds, of this attempt
	HeaderSignature = "Portcullis-Signature" // v1=HMAC-SHA256, hex
)

// Message is the body of a webhook. A receiver that has seen the id has seen the message:
// it may come more than once.
type Message struct {
	Schema  string        `json:"schema"`
	ID      string        `json:"id"`
	Time    string        `json:"time"` // when the rule fired
	Rule    string        `json:"rule"`
	Session string        `json:"session"`
	Claims  policy.Claims `json:"claims"` // what the rule saw
}

// Limits of a target and of delivering.
const (
	MinSecret     = 32
	MaxSecret     = 4096
	attemptTime   = 10 * time.Second
	firstBackoff  = time.Second
	lastBackoff   = 5 * time.Minute
	giveUpAfter   = 24 * time.Hour
	maxAnswer     = 4 << 10
	acceptedSkew  = 5 * time.Minute
	signatureForm = "v1="
)

// Target is one address that webhooks go to.
type Target struct {
	Name   string
	url    string
	secret []byte
	client *http.Client
}

// NewTarget checks the address and reads the secret, a file that nobody but its owner may
// read. caFile, if not empty, holds the only authorities (PEM) that are believed.
// Plain http is for addresses of the operator's own network: private, loopback or link-local ones.
func NewTarget(name, address, secretFile, caFile string) (*Target, error) {
	u, err := url.Parse(address)
	if err != nil || u.Host == "" || u.User != nil || u.Fragment != "" || (u.Scheme != "https" && u.Scheme != "http") {
		return nil, fmt.Errorf("webhook %s: %q is not an http or https address without user and fragment", name, address)
	}
	secret, err := readSecret(secretFile)
	if err != nil {
		return nil, fmt.Errorf("webhook %s: %w", name, err)
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	if caFile != "" {
		pem, err := os.ReadFile(caFile)
		if err != nil {
			return nil, fmt.Errorf("webhook %s: %w", name, err)
		}
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("webhook %s: %s holds no certificate", name, caFile)
		}
	}
	dialer := &net.Dialer{Timeout: attemptTime}
	if u.Scheme == "http" {
		dialer.Control = ownNetwork
	}
	return &Target{Name: name, url: u.String(), secret: secret, client: &http.Client{
		Timeout: attemptTime,
		// No proxy of the environment, and nowhere else than the configured address.
		Transport:     &http.Transport{DialContext: dialer.DialContext, TLSClientConfig: conf, DisableKeepAlives: true, MaxResponseHeaderBytes: maxAnswer},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// String names the target and keeps its secret.
func (t *Target) String() string { return "webhook " + t.Name }

var errPublic = errors.New("plain http is for the operator's own network; use https")

// ownNetwork looks at the address that is really dialled, whatever the name server said.
func ownNetwork(_, address string, _ syscall.RawConn) error {
	a, err := netip.ParseAddrPort(address)
	if err != nil {
		return err
	}
	if ip := a.Addr().Unmap(); !ip.IsPrivate() && !ip.IsLoopback() && !ip.IsLinkLocalUnicast() {
		return errPublic
	}
	return nil
}

func readSecret(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() || st.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s has mode %04o: others may read it; chmod 0600", path, st.Mode().Perm())
	}
	b, err := io.ReadAll(io.LimitReader(f, MaxSecret+1))
	if err != nil {
		return nil, err
	}
	b = bytes.TrimRight(b, "\r\n")
	if len(b) < MinSecret || len(b) > MaxSecret {
		return nil, fmt.Errorf("%s holds %d bytes, not %d to %d", path, len(b), MinSecret, MaxSecret)
	}
	return b, nil
}

// Sign computes the signature of a webhook: HMAC-SHA256 over version, id, timestamp and body.
func Sign(secret []byte, id string, timestamp int64, body []byte) string {
	m := hmac.New(sha256.New, secret)
	fmt.Fprintf(m, "v1.%s.%d.", id, timestamp)
	m.Write(body)
	return signatureForm + hex.EncodeToString(m.Sum(nil))
}

// Verify is what a receiver does: the signature is right, the time is now (± 5 min), and
// the id in the header is the one in the body. That the id is new is the receiver's to remember.
func Verify(secret []byte, h http.Header, body []byte, now time.Time) (*Message, error) {
	id := h.Get(HeaderID)
	at, err := strconv.ParseInt(h.Get(HeaderTimestamp), 10, 64)
	if err != nil {
		return nil, errors.New("webhook: no timestamp")
	}
	if !hmac.Equal([]byte(Sign(secret, id, at, body)), []byte(h.Get(HeaderSignature))) {
		return nil, errors.New("webhook: the signature is wrong")
	}
	if d := now.Sub(time.Unix(at, 0)).Abs(); d > acceptedSkew {
		return nil, fmt.Errorf("webhook: %s old", d)
	}
	var m Message
	if err := json.Unmarshal(body, &m); err != nil {
		return nil, fmt.Errorf("webhook: %w", err)
	}
	if m.Schema != WebhookSchema || m.ID != id {
		return nil, errors.New("webhook: another schema or id than the header's")
	}
	return &m, nil
}

// deliver tries until the target has it, for a day.
func (e *Engine) deliver(ctx context.Context, t *Target, j *job) outcome {
	body, err := json.Marshal(Message{Schema: WebhookSchema, ID: j.id.String(), Time: j.time.UTC().Format(timeForm), Rule: j.rule,
		Session: j.session, Claims: j.claims})
	if err != nil {
		return failed(ReasonUndelivered, err.Error())
	}
	for backoff, attempts := firstBackoff, 1; ; backoff, attempts = min(2*backoff, lastBackoff), attempts+1 {
		err := t.post(ctx, j.id.String(), body, e.o.Clock.Now())
		if err == nil {
			return done(fmt.Sprintf("attempt %d", attempts))
		}
		if e.o.Clock.Now().Sub(j.time) > giveUpAfter {
			return failed(ReasonUndelivered, fmt.Sprintf("%d attempts; the last: %v", attempts, err))
		}
		if !e.pause(ctx, backoff) {
			return failed(ReasonUndelivered, ctx.Err().Error())
		}
	}
}

func (t *Target) post(ctx context.Context, id string, body []byte, now time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, attemptTime)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, t.url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("User-Agent", "portcullis")
	r.Header.Set(HeaderID, id)
	r.Header.Set(HeaderTimestamp, strconv.FormatInt(now.Unix(), 10))
	r.Header.Set(HeaderSignature, Sign(t.secret, id, now.Unix(), body))
	answer, err := t.client.Do(r)
	if err != nil {
		var u *url.Error // its text has the address with what may be a token
		if errors.As(err, &u) {
			err = u.Err
		}
		return err
	}
	defer answer.Body.Close()
	io.Copy(io.Discard, io.LimitReader(answer.Body, maxAnswer))
	if answer.StatusCode < 200 || answer.StatusCode > 299 {
		return errors.New(strings.TrimSpace("answered " + answer.Status))
	}
	return nil
}
