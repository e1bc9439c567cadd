// Package lock is the second lock of the engine: an authorization plugin that
// lets no request pass but those that the verifier stamped. It answers over a unix
// socket in the engine's directory of plugins, by the protocol of Docker's
// authorization plugins. Where it does not answer, engines refuse every request.
//
// It does not judge what a request does: engines show plugins no body of a load,
// an archive or a commit. The judge is package guard, which stamps what it allows.
package lock

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/textproto"

	"portcullis/verifier/stamp"
)

// MaxRequest is the largest request of an engine in bytes: base64 of a body below
// 1 MiB (older engines) or 4 MiB (29.3.1 and later), with headers.
const MaxRequest = 8 << 20

// ReasonMalformed is the reason for what is not the plugin protocol.
const ReasonMalformed = "plugin-malformed"

// Refused is told of every request that the lock refuses, before it is answered.
type Refused func(method, uri, reason, detail string)

// request is what engines post; moby pkg/authorization/api.go. Fields that are
// not needed here are left out, later engines may add some.
type request struct {
	RequestMethod  string
	RequestURI     string `json:"RequestUri"`
	RequestBody    []byte
	RequestHeaders map[string]string
}

type response struct {
	Allow bool
	Msg   string `json:",omitempty"`
	Err   string `json:",omitempty"`
}

// Handler answers the plugin protocol.
func Handler(p *stamp.Press, refused Refused) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /Plugin.Activate", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, map[string][]string{"Implements": {"authz"}})
	})
	check := func(path string, test func(request, string) error) {
		mux.HandleFunc("POST "+path, func(w http.ResponseWriter, r *http.Request) {
			q, err := decode(http.MaxBytesReader(w, r.Body, MaxRequest))
			if err == nil {
				err = test(q, q.stamp())
			} else {
				err = &stamp.Error{Reason: ReasonMalformed, Detail: err.Error()}
			}
			if err != nil {
				var e *stamp.Error
				errors.As(err, &e)
				refused(q.RequestMethod, q.RequestURI, e.Reason, e.Detail)
				answer(w, response{Msg: "portcullis: " + err.Error()})
				return
			}
			answer(w, response{Allow: true})
		})
	}
	check("/AuthZPlugin.AuthZReq", func(q request, s string) error { return p.Use(q.RequestMethod, q.RequestURI, s, q.RequestBody) })
	check("/AuthZPlugin.AuthZRes", func(q request, s string) error { return p.Made(q.RequestMethod, q.RequestURI, s) })
	return mux
}

// decode reads one request. Engines are trusted to send it well-formed; what is
// not leads to a refusal.
func decode(r io.Reader) (request, error) {
	var q request
	d := json.NewDecoder(r)
	if err := d.Decode(&q); err != nil {
		return request{}, err
	}
	if _, err := d.Token(); err != io.EOF {
		return request{}, errors.New("more than one value")
	}
	if q.RequestMethod == "" || q.RequestURI == "" {
		return request{}, errors.New("no method or URI")
	}
	return q, nil
}

// stamp finds the header whatever the engine's spelling; twice is never.
func (q request) stamp() string {
	found, n := "", 0
	for name, v := range q.RequestHeaders {
		if textproto.CanonicalMIMEHeaderKey(name) == stamp.Header {
			found = v
			n++
		}
	}
	if n != 1 {
		return ""
	}
	return found
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/vnd.docker.plugins.v1.1+json")
	json.NewEncoder(w).Encode(v)
}
