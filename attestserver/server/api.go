package server

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"

	"connectrpc.com/connect"

	portcullisv1 "portcullis/api/portcullis/v1"
	"portcullis/attestserver/result"
	"portcullis/internal/translog"
)

func (s *status) getResult() (*portcullisv1.GetResultResponse, error) {
	jwt, cwt, err := s.sign(result.Build(s.s.facts(s.current(), s.o.Clock.Now())))
	if err != nil {
		return nil, err
	}
	return &portcullisv1.GetResultResponse{Jwt: jwt, Cwt: cwt}, nil
}

func (s *status) sign(c *result.Claims) (jwt string, cwt []byte, err error) {
	if jwt, err = c.JWT(s.o.Key); err == nil {
		cwt, err = c.CWT(s.o.Key)
	}
	return jwt, cwt, err
}

func askCode(err error) connect.Code {
	switch askReason(err) {
	case ReasonAskNonce, ReasonAskContext, ReasonAskProbe, ReasonPCUnnamed:
		return connect.CodeInvalidArgument
	case ReasonPCUnknown:
		return connect.CodeNotFound
	case ReasonAskBusy:
		return connect.CodeResourceExhausted
	case ReasonAskGone:
		return connect.CodeUnavailable
	case ReasonAskTime:
		return connect.CodeDeadlineExceeded
	}
	var broken *translog.Error
	if errors.As(err, &broken) {
		return connect.CodeInvalidArgument
	}
	return connect.CodeInternal
}

func (s *status) ask(ctx context.Context, r *portcullisv1.AskRequest) (*portcullisv1.AskResponse, error) {
	earlier, err := s.o.Record.earlier(r.Checkpoint)
	if err != nil {
		return nil, err
	}
	claims, err := s.s.Ask(ctx, r.Nonce, r.Context, r.Probes)
	if err != nil {
		return nil, err
	}
	answer := new(portcullisv1.AskResponse)
	if answer.Jwt, answer.Cwt, err = s.sign(claims); err != nil {
		return nil, err
	}
	pc := claims.Submods[result.SubmodPC].PC
	answer.Entry, answer.Proof, answer.Consistency, err = s.o.Record.prove(pc.LogIndex, earlier)
	return answer, err
}

// Bounds of the plain form.
const maxAskBody = 128 << 10

// askBody is the body of POST /attest.
type askBody struct {
	Checkpoint string   `json:"checkpoint"`
	Nonce      string   `json:"nonce"` // base64url without padding
	Context    string   `json:"context"`
	Probes     []string `json:"probes"`
	PC         string   `json:"pc"`
}

// askReply is what it answers.
type askReply struct {
	JWT         string   `json:"jwt"`
	CWT         []byte   `json:"cwt"`   // base64
	Entry       []byte   `json:"entry"` // base64
	Proof       string   `json:"proof"`
	Consistency [][]byte `json:"consistency,omitempty"` // base64
}

// postAttest is Ask for those who have nothing but HTTP and JSON.
func (d door) postAttest(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxAskBody))
	var question *portcullisv1.AskRequest
	var pc string
	if err == nil {
		question, pc, err = parseAsk(body)
	}
	if err != nil {
		replyError(w, http.StatusBadRequest, "ask-malformed", err)
		return
	}
	var a *portcullisv1.AskResponse
	s, err := d.f.pick(pc)
	if err == nil {
		a, err = s.ask(r.Context(), question)
	}
	if err != nil {
		reason := askReason(err)
		if reason == "" {
			reason = translog.Reason(err)
		}
		replyError(w, httpCode[askCode(err)], reason, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(askReply{JWT: a.Jwt, CWT: a.Cwt, Entry: a.Entry, Proof: a.Proof, Consistency: a.Consistency})
}

var httpCode = map[connect.Code]int{
	connect.CodeInvalidArgument: http.StatusBadRequest, connect.CodeNotFound: http.StatusNotFound, connect.CodeResourceExhausted: http.StatusTooManyRequests,
	connect.CodeUnavailable: http.StatusServiceUnavailable, connect.CodeDeadlineExceeded: http.StatusGatewayTimeout,
	connect.CodeInternal: http.StatusInternalServerError,
}

func replyError(w http.ResponseWriter, code int, reason string, err error) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	json.NewEncoder(w).Encode(map[string]string{"reason": reason, "detail": err.Error()})
}
