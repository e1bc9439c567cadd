package witness

import (
	"bytes"
	"encoding/base64"
	"strconv"
	"strings"
)

// Bounds of a request.
const (
	maxRequest = 72 << 10
	maxProof   = 63
)

// request is the body of add-checkpoint.
type request struct {
	old        int64
	proof      [][]byte
	checkpoint []byte
}

// parseRequest reads: an old-size line, proof lines, an empty line, a checkpoint.
func parseRequest(body []byte) (*request, error) {
	head, checkpoint, ok := bytes.Cut(body, []byte("\n\n"))
	if !ok || len(body) > maxRequest {
		return nil, refuse(ReasonRequest, "no empty line, or longer than %d bytes", maxRequest)
	}
	lines := strings.Split(string(head), "\n")
	digits, ok := strings.CutPrefix(lines[0], "old ")
	old, err := strconv.ParseInt(digits, 10, 64)
	if !ok || err != nil || old < 0 || strconv.FormatInt(old, 10) != digits {
		return nil, refuse(ReasonRequest, "first line %.40q, want old and a size", lines[0])
	}
	lines = lines[1:]
	if len(lines) > maxProof {
		return nil, refuse(ReasonRequest, "a proof of %d lines, at most %d are possible", len(lines), maxProof)
	}
	r := &request{old: old, checkpoint: checkpoint}
	for _, l := range lines {
		h, err := base64.StdEncoding.Strict().DecodeString(l)
		if err != nil || len(h) != 32 || base64.StdEncoding.EncodeToString(h) != l {
			return nil, refuse(ReasonRequest, "proof line %.60q", l)
		}
		r.proof = append(r.proof, h)
	}
	return r, nil
}

func (r *request) encode() []byte {
	var b bytes.Buffer
	b.WriteString("old " + strconv.FormatInt(r.old, 10) + "\n")
	for _, h := range r.proof {
		b.WriteString(base64.StdEncoding.EncodeToString(h) + "\n")
	}
	b.WriteString("\n")
	b.Write(r.checkpoint)
	return b.Bytes()
}
