package fetch

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// newTransport trusts roots, or those of the machine where roots is nil.
func newTransport(roots *x509.CertPool) *http.Transport {
	return &http.Transport{
		Proxy:       http.ProxyFromEnvironment,
		DialContext: (&net.Dialer{Timeout: 15 * time.Second}).DialContext,
		// A coding of its own would make positions in the file mean something else.
		DisableCompression:     true,
		TLSClientConfig:        &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:    15 * time.Second,
		ResponseHeaderTimeout:  30 * time.Second,
		MaxResponseHeaderBytes: 64 << 10,
		IdleConnTimeout:        time.Minute,
		ForceAttemptHTTP2:      true,
	}
}

// TransportFor trusts the certificates in pem, and no others.
func TransportFor(pem []byte) (http.RoundTripper, error) {
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, refuse(ReasonReference, "no certificate in the file of authorities")
	}
	return newTransport(roots), nil
}

// maxRedirects in a row.
const maxRedirects = 5

// follow decides about a redirect: only over HTTP, not out of TLS, and no secret
// goes to another host.
func follow(r *http.Request, via []*http.Request) error {
	was := via[len(via)-1]
	switch {
	case len(via) > maxRedirects:
		return refuse(ReasonRedirect, "more than %d in a row", maxRedirects)
	case r.URL.Scheme != "http" && r.URL.Scheme != "https":
		return refuse(ReasonRedirect, "to %.80q", shown(r.URL))
	case was.URL.Scheme == "https" && r.URL.Scheme != "https":
		return refuse(ReasonRedirect, "out of TLS, to %.80q", shown(r.URL))
	case r.URL.User != nil:
		return refuse(ReasonRedirect, "with a name and a password, to %.80q", r.URL.Host)
	}
	if r.URL.Host != via[0].URL.Host || r.URL.Scheme != via[0].URL.Scheme {
		r.Header.Del("Authorization")
	}
	return nil
}

// shown is a URL without what may be secret in it.
func shown(u *url.URL) string {
	c := url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path, Opaque: u.Opaque}
	return c.String()
}

// want is what is known of a file before it is fetched.
type want struct {
	size     int64  // bytes; -1 = not known
	most     int64  // bytes
	digest   string // "" = nobody knows
	stage    string
	done     int64 // of the whole import before this file, for the progress
	total    int64 // of the whole import; -1 = not known
	prepared func(*http.Request) error
	refused  func(*http.Response) error // looks at an answer of 401 or 403; nil = final
}

// Fetcher brings files. It is used by one goroutine.
type Fetcher struct {
	opt    Options
	client *http.Client
	tokens map[string]string
}

// New makes a Fetcher.
func New(o Options) *Fetcher {
	o = o.filled()
	return &Fetcher{opt: o, client: &http.Client{Transport: o.Transport, CheckRedirect: follow}, tokens: map[string]string{}}
}

// fill fetches what is missing of p. It tries again as long as that helps.
func (f *Fetcher) fill(ctx context.Context, p *part, w want) error {
	pause, fruitless := f.opt.Pause, 0
	for attempt := 1; ; attempt++ {
		before := p.size
		err := f.attempt(ctx, p, w)
		if err == nil {
			return nil
		}
		var own *Error
		if ctx.Err() != nil || errors.As(err, &own) && !own.again {
			return errors.Join(ctx.Err(), err)
		}
		if fruitless++; p.size > before {
			pause, fruitless = f.opt.Pause, 0
		}
		if fruitless >= f.opt.Fruitless || attempt >= f.opt.Attempts {
			if own == nil {
				err = refuse(ReasonUnreachable, "%v", err)
			}
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
		pause = min(pause*2, 30*time.Second)
	}
}

// errTooSlow is the cause when the watchdog ends an attempt.
var errTooSlow = passing(ReasonSlow, "too few bytes")

// attempt makes one request and takes what it brings.
func (f *Fetcher) attempt(ctx context.Context, p *part, w want) error {
	if w.size >= 0 && p.size == w.size {
		return nil
	}
	if w.digest == "" && p.note.Validator == "" && p.size > 0 {
		// Nothing says that the rest would be of the same file.
		if err := p.restart(note{Version: partVersion, URL: p.note.URL, Total: -1}); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, p.note.URL, nil)
	if err != nil {
		return refuse(ReasonReference, "%v", err)
	}
	if p.size > 0 {
		r.Header.Set("Range", fmt.Sprintf("bytes=%d-", p.size))
		if w.digest == "" {
			r.Header.Set("If-Range", p.note.Validator)
		}
	}
	if w.prepared != nil {
		if err := w.prepared(r); err != nil {
			return err
		}
	}
	a, err := f.client.Do(r)
	if err != nil {
		return asReason(ctx, err)
	}
	defer a.Body.Close()
	total, err := f.begin(p, w, a)
	if err != nil || total == done {
		return err
	}
	dog := newWatchdog(f.opt, cancel)
	defer dog.stop()
	return f.take(ctx, p, w, a.Body, total, dog)
}

// done is what begin answers when nothing is left to fetch.
const done = -2

// begin looks at the answer's head and makes p fit for its body. It returns how many
// bytes the whole has; -1 where the server does not say.
func (f *Fetcher) begin(p *part, w want, a *http.Response) (total int64, err error) {
	if c := a.Header.Get("Content-Encoding"); c != "" && c != "identity" && a.StatusCode < 300 {
		return 0, refuse(ReasonRange, "in the coding %.40q, which nobody asked for", c)
	}
	switch {
	case a.StatusCode == http.StatusOK:
		total = a.ContentLength
		if err := w.fits(total); err != nil {
			return 0, err
		}
		// The whole file, whatever was asked for: what is there is of another one, or the server knows no ranges.
		return total, p.restart(note{Version: partVersion, URL: p.note.URL, Validator: validator(a), Total: total})
	case a.StatusCode == http.StatusPartialContent:
		return f.more(p, w, a)
	case a.StatusCode == http.StatusRequestedRangeNotSatisfiable && p.size > 0:
		if _, _, all, ok := contentRange(a.Header.Get("Content-Range")); ok && all == p.size && (w.size < 0 || w.size == all) {
			return done, nil
		}
		err := p.restart(note{Version: partVersion, URL: p.note.URL, Total: -1})
		return 0, errors.Join(err, passing(ReasonChanged, "the server has fewer bytes than before"))
	case (a.StatusCode == http.StatusUnauthorized || a.StatusCode == http.StatusForbidden) && w.refused != nil:
		return 0, w.refused(a)
	case a.StatusCode == http.StatusTooManyRequests || a.StatusCode == http.StatusRequestTimeout || a.StatusCode >= 500:
		return 0, passing(ReasonStatus, "%d", a.StatusCode)
	}
	return 0, refuse(ReasonStatus, "%d", a.StatusCode)
}

// more looks at a partial answer: it has to go on exactly where p ends, in the same file.
func (f *Fetcher) more(p *part, w want, a *http.Response) (int64, error) {
	first, last, total, ok := contentRange(a.Header.Get("Content-Range"))
	switch {
	case p.size == 0:
		return 0, refuse(ReasonRange, "a part where the whole was asked for")
	case !ok || first != p.size || last != total-1 || a.ContentLength >= 0 && a.ContentLength != last-first+1:
		return 0, refuse(ReasonRange, "asked from byte %d on, answered %.80q", p.size, a.Header.Get("Content-Range"))
	case p.note.Total >= 0 && total != p.note.Total,
		w.digest == "" && a.Header.Get("ETag") != "" && strings.HasPrefix(p.note.Validator, `"`) && a.Header.Get("ETag") != p.note.Validator:
		err := p.restart(note{Version: partVersion, URL: p.note.URL, Total: -1})
		return 0, errors.Join(err, passing(ReasonChanged, "the file is another one than before"))
	}
	return total, w.fits(total)
}

// fits refuses a file of a size that is not the one that was named, or is too large.
func (w want) fits(total int64) error {
	if w.size >= 0 && total >= 0 && total != w.size {
		return refuse(ReasonTooLarge, "%d bytes are to come, %d were named", total, w.size)
	}
	if total > w.most {
		return refuse(ReasonTooLarge, "%d bytes are to come, at most %d are taken", total, w.most)
	}
	return nil
}

// take writes the body down.
func (f *Fetcher) take(ctx context.Context, p *part, w want, body io.Reader, total int64, dog *watchdog) error {
	most := w.most
	if w.size >= 0 {
		most = w.size
	}
	if total >= 0 {
		most = total
	}
	shownTotal := w.total
	if shownTotal < 0 {
		shownTotal = total
	}
	buf := make([]byte, 128<<10)
	for {
		n, err := body.Read(buf)
		if n > 0 {
			dog.fed(int64(n))
			if int64(n) > most-p.size {
				return refuse(ReasonTooLarge, "more than %d bytes come", most)
			}
			if _, err := p.Write(buf[:n]); err != nil {
				return err
			}
			f.opt.Progress(w.stage, w.done+p.size, shownTotal)
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return asReason(ctx, err)
		}
	}
	if total >= 0 && p.size < total || w.size >= 0 && p.size < w.size {
		return passing(ReasonUnreachable, "the answer ends after %d bytes", p.size)
	}
	return nil
}

// asReason finds our own reason in an error of the HTTP client.
func asReason(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); errors.Is(cause, errTooSlow) {
		return cause
	}
	var own *Error
	if errors.As(err, &own) {
		return own
	}
	var certificate *tls.CertificateVerificationError
	if errors.As(err, &certificate) {
		return refuse(ReasonUnreachable, "%v", certificate)
	}
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err // the address may hold a secret
	}
	return passing(ReasonUnreachable, "%v", err)
}

var rangeForm = regexp.MustCompile(`^bytes (?:([0-9]{1,18})-([0-9]{1,18})|\*)/([0-9]{1,18})$`)

// contentRange parses a Content-Range whose total is known (RFC 9110 §14.4). Of one
// that names no part first is -1.
func contentRange(s string) (first, last, total int64, ok bool) {
	m := rangeForm.FindStringSubmatch(s)
	if m == nil {
		return 0, 0, 0, false
	}
	total, _ = strconv.ParseInt(m[3], 10, 64) // 18 digits
	if m[1] == "" {
		return -1, -1, total, true
	}
	first, _ = strconv.ParseInt(m[1], 10, 64)
	last, _ = strconv.ParseInt(m[2], 10, 64)
	return first, last, total, first <= last && last < total
}

// validator is what If-Range may carry: a strong ETag, or a date that is strong
// because the file had not changed for a minute (RFC 9110 §8.8.2.2, §13.1.5).
func validator(a *http.Response) string {
	if e := a.Header.Get("ETag"); len(e) > 2 && len(e) <= 256 && e[0] == '"' && e[len(e)-1] == '"' {
		return e
	}
	modified, err := http.ParseTime(a.Header.Get("Last-Modified"))
	if err != nil {
		return ""
	}
	if now, err := http.ParseTime(a.Header.Get("Date")); err != nil || now.Sub(modified) < time.Minute {
		return ""
	}
	return a.Header.Get("Last-Modified")
}
