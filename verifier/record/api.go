package record

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"

	"portcullis/verifier/approval"
)

// API is what the portcullis command asks of the running verifierd, on its socket:
//
//	POST /approvals         an envelope → Added
//	GET  /approvals/status  → Status
//	GET  /approvals/images  → []Named
//
// A refusal is {"reason", "detail"} with 403, a log that cannot be written 500.
func (r *Record) API() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /approvals", func(w http.ResponseWriter, q *http.Request) {
		envelope, err := io.ReadAll(http.MaxBytesReader(w, q.Body, approval.MaxEnvelope))
		if err != nil {
			answer(w, http.StatusForbidden, Refused{approval.ReasonMalformed, "not readable, or too long"})
			return
		}
		added, err := r.Add(envelope)
		var no *approval.Error
		switch {
		case errors.As(err, &no):
			answer(w, http.StatusForbidden, Refused{no.Reason, no.Detail})
		case err != nil:
			answer(w, http.StatusInternalServerError, Refused{"", err.Error()})
		default:
			answer(w, http.StatusOK, added)
		}
	})
	mux.HandleFunc("GET /approvals/status", func(w http.ResponseWriter, _ *http.Request) { answer(w, http.StatusOK, r.Status()) })
	mux.HandleFunc("GET /approvals/images", func(w http.ResponseWriter, _ *http.Request) {
		out := []Named{}
		for _, l := range r.Approvals() {
			n := Named{Name: l.Approval.Name, Version: l.Approval.Version, Image: l.Approval.Image}
			if l.Refused != nil {
				n.Reason, n.Detail = approval.Reason(l.Refused), l.Refused.Error()
			}
			out = append(out, n)
		}
		answer(w, http.StatusOK, out)
	})
	return mux
}

// Named is an image that an approval names. Whoever fetches one looks here first;
// Decide is asked all the same.
type Named struct {
	Name    string         `json:"name"`
	Version uint64         `json:"version"`
	Image   approval.Image `json:"image"`
	Reason  string         `json:"reason,omitempty"` // why it would be refused now
	Detail  string         `json:"detail,omitempty"`
}

// Refused is the API's answer of no.
type Refused struct {
	Reason string `json:"reason"`
	Detail string `json:"detail"`
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(v) // the caller may be gone: nobody to tell
}
