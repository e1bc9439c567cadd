package fetch

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"
)

// Credentials are names and passwords by host. A secret goes to the host that it
// stands for and to no other, also where a registry asks for it to be sent elsewhere.
type Credentials map[string]login

// login may be of a token server: registry is whose images it is for then. Without that
// any registry could have a token made that reads the repositories of another one.
type login struct{ name, password, registry string }

// of tells whether the login at a host is for images of a registry.
func (l login) of(host, registry string) bool { return host == registry || l.registry == registry }

// String keeps passwords out of what is printed.
func (login) String() string { return "[redacted]" }

// GoString does so for %#v.
func (login) GoString() string { return "[redacted]" }

// maxCredentials is how long the file may be, in bytes.
const maxCredentials = 16 << 10

// LoadCredentials reads a file of lines `HOST NAME PASSWORD`, or for a token server
// `HOST NAME PASSWORD REGISTRY`, that only its owner can read. Lines that begin with #
// are not read.
func LoadCredentials(path string) (Credentials, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, refuse(ReasonCredentials, "%v", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil || !st.Mode().IsRegular() || st.Mode().Perm()&0o077 != 0 {
		return nil, refuse(ReasonCredentials, "%s has to be a file that nobody but its owner can read (chmod 600)", path)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxCredentials+1))
	defer clear(b)
	if err != nil || len(b) > maxCredentials {
		return nil, refuse(ReasonCredentials, "%s cannot be read, or has more than %d bytes", path, maxCredentials)
	}
	return parseCredentials(b)
}

func parseCredentials(b []byte) (Credentials, error) {
	out := Credentials{}
	for n, line := range bytes.Split(b, []byte("\n")) {
		words := strings.Fields(string(line))
		if len(words) == 0 || strings.HasPrefix(words[0], "#") {
			continue
		}
		if len(words) < 3 || len(words) > 4 || !hostForm.MatchString(words[0]) || len(words) == 4 && !hostForm.MatchString(words[3]) {
			return nil, refuse(ReasonCredentials, "line %d is not HOST NAME PASSWORD [REGISTRY]", n+1)
		}
		if _, twice := out[words[0]]; twice {
			return nil, refuse(ReasonCredentials, "line %d: %s is there twice", n+1, words[0])
		}
		l := login{name: words[1], password: words[2]}
		if len(words) == 4 {
			l.registry = words[3]
		}
		out[words[0]] = l
	}
	return out, nil
}

// access is how one repository is read: without a name, with a token that everybody
// gets, or with credentials (distribution-spec; RFC 6750, RFC 7617).
type access struct {
	f     *Fetcher
	ctx   context.Context
	r     Reference
	asked bool // a challenge was answered already, for this file
}

func (f *Fetcher) access(ctx context.Context, r Reference) *access {
	return &access{f: f, ctx: ctx, r: r}
}

// key is what a token is good for.
func (a *access) key() string { return a.r.Host + "/" + a.r.Repository }

func (a *access) prepared(q *http.Request) error {
	if h := a.f.tokens[a.key()]; h != "" {
		q.Header.Set("Authorization", h)
	}
	return nil
}

// refused answers a challenge, once.
func (a *access) refused(answer *http.Response) error {
	scheme, values := challenge(answer.Header.Get("WWW-Authenticate"))
	if a.asked || answer.Request.URL.Host != a.r.Host {
		return refuse(ReasonCredentials, "%s answers %d", answer.Request.URL.Host, answer.StatusCode)
	}
	a.asked = true
	switch scheme {
	case "basic":
		l, ok := a.f.opt.Credentials[a.r.Host]
		if !ok {
			return refuse(ReasonCredentials, "%s wants a name and a password: --credentials FILE with a line for it", a.r.Host)
		}
		q := http.Request{Header: http.Header{}}
		q.SetBasicAuth(l.name, l.password)
		a.f.tokens[a.key()] = q.Header.Get("Authorization")
	case "bearer":
		token, err := a.token(values)
		if err != nil {
			return err
		}
		a.f.tokens[a.key()] = "Bearer " + token
	default:
		return refuse(ReasonCredentials, "%s answers %d and wants %.40q", a.r.Host, answer.StatusCode, scheme)
	}
	return passing(ReasonCredentials, "%s asks who is there", a.r.Host)
}

// maxToken is how long a token may be, in bytes.
const maxToken = 16 << 10

var tokenForm = regexp.MustCompile(`^[A-Za-z0-9._~+/=-]+$`)

// token asks the server that the registry names. Our own credentials for that
// server go with it, if there are some for this registry.
func (a *access) token(values map[string]string) (string, error) {
	u, err := url.Parse(values["realm"])
	if err != nil || u.Host == "" || u.User != nil || u.Scheme != "https" && !(u.Scheme == "http" && a.f.opt.PlainHTTP) {
		return "", refuse(ReasonCredentials, "%s sends us to %.100q for a token", a.r.Host, values["realm"])
	}
	query := url.Values{"scope": {"repository:" + a.r.Repository + ":pull"}}
	if s := values["service"]; s != "" {
		query.Set("service", s)
	}
	u.RawQuery = query.Encode()
	r, err := http.NewRequestWithContext(a.ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return "", refuse(ReasonCredentials, "%v", err)
	}
	hint := ""
	switch l, ok := a.f.opt.Credentials[u.Host]; {
	case ok && l.of(u.Host, a.r.Host):
		r.SetBasicAuth(l.name, l.password)
	case ok:
		hint = "; its line in the credentials is not for " + a.r.Host + ": put that behind the password if it is"
	}
	answer, err := a.f.client.Do(r)
	if err != nil {
		return "", asReason(a.ctx, err)
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return "", refuse(ReasonCredentials, "%s gives no token: %d%s", u.Host, answer.StatusCode, hint)
	}
	b, err := io.ReadAll(io.LimitReader(answer.Body, 64<<10))
	if err != nil {
		return "", asReason(a.ctx, err)
	}
	var t struct {
		Token  string `json:"token"`
		Access string `json:"access_token"`
	}
	if err := json.Unmarshal(b, &t); err != nil {
		return "", refuse(ReasonCredentials, "%s gives no token: %v", u.Host, err)
	}
	if t.Token == "" {
		t.Token = t.Access
	}
	if len(t.Token) > maxToken || !tokenForm.MatchString(t.Token) {
		return "", refuse(ReasonCredentials, "%s gives no token", u.Host)
	}
	return t.Token, nil
}

// Of a quoted value 1000 bytes are taken, as many as a repetition may have.
var parameterForm = regexp.MustCompile(`^\s*([A-Za-z_]{1,32})="([^"\\]{0,1000})"\s*(?:,|$)`)

// challenge reads the one challenge of a WWW-Authenticate (RFC 9110 §11.6.1): its
// scheme in small letters and its quoted parameters. What does not parse is left out.
func challenge(h string) (scheme string, values map[string]string) {
	if len(h) > 4096 {
		return "", nil
	}
	scheme, rest, _ := strings.Cut(strings.TrimSpace(h), " ")
	values = map[string]string{}
	for {
		m := parameterForm.FindStringSubmatch(rest)
		if m == nil {
			return strings.ToLower(scheme), values
		}
		if _, twice := values[strings.ToLower(m[1])]; twice {
			return "", nil
		}
		values[strings.ToLower(m[1])] = m[2]
		rest = rest[len(m[0]):]
	}
}
