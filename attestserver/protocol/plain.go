package protocol

import (
	"bytes"
	"encoding/base64"
	"strconv"
)

// plain is implemented by what is read with every answer of a quote. readPlain reads the
// very form that EncodeOp gives the usual value, and refuses all else, which encoding/json
// reads then: that is slower by far, and decides alone what is valid. v is set on success only.
type plain interface{ readPlain(data []byte) bool }

// plainReader takes JSON off the front, as EncodeOp writes it. After anything else all it
// gives is empty.
type plainReader struct {
	left []byte
	bad  bool
}

// next takes a text that must be there.
func (r *plainReader) next(text string) {
	if !r.is(text) {
		r.bad = true
	}
}

// is takes a text, if it is there.
func (r *plainReader) is(text string) bool {
	rest, ok := bytes.CutPrefix(r.left, []byte(text))
	if ok {
		r.left = rest
	}
	return ok
}

// text takes a string in which nothing is escaped, and what follows it.
func (r *plainReader) text() []byte {
	r.next(`"`)
	n := bytes.IndexByte(r.left, '"')
	if r.bad || n < 0 {
		r.bad = true
		return nil
	}
	s := r.left[:n]
	for _, c := range s {
		if c < ' ' || c > '~' || c == '\\' {
			r.bad = true
			return nil
		}
	}
	r.left = r.left[n+1:]
	return s
}

// bytes takes a string of base64.
func (r *plainReader) bytes() []byte {
	s := r.text()
	b := make([]byte, base64.StdEncoding.DecodedLen(len(s)))
	n, err := base64.StdEncoding.Decode(b, s)
	if err != nil {
		r.bad = true
		return nil
	}
	return b[:n]
}

// number takes a number that is not negative and has at most digits digits.
func (r *plainReader) number(digits int) int64 {
	n := 0
	for n < len(r.left) && n <= digits && r.left[n] >= '0' && r.left[n] <= '9' {
		n++
	}
	v, err := strconv.ParseInt(string(r.left[:n]), 10, 64)
	if err != nil || n > digits || n > 1 && r.left[0] == '0' {
		r.bad = true
		return 0
	}
	r.left = r.left[n:]
	return v
}

// end tells whether all was as EncodeOp writes it, to the last byte.
func (r *plainReader) end() bool { return !r.bad && len(r.left) == 0 }

// readPlain implements plain: each question after the first ones.
func (p *TpmParams) readPlain(data []byte) bool {
	r := plainReader{left: data}
	var v TpmParams
	r.next(`{"session":`)
	v.Session = string(r.text())
	r.next(`,"nonce":`)
	v.Nonce = r.bytes()
	r.next(`,"identify":false,"log":false,"list_from":`)
	v.ListFrom = r.number(15)
	r.next(`}`)
	if !r.end() {
		return false
	}
	*p = v
	return true
}

// readPlain implements plain: each answer with a quote, and a piece of IMA's list or none.
func (d *TpmData) readPlain(data []byte) bool {
	r := plainReader{left: data}
	v := TpmData{Present: true, Quote: &TpmQuote{PCRs: make([]TpmPCR, 0, len(TpmRegisters))}}
	r.next(`{"present":true,"quote":{"message":`)
	v.Quote.Message = r.bytes()
	r.next(`,"signature":`)
	v.Quote.Signature = r.bytes()
	r.next(`,"pcrs":[`)
	for again := true; again && !r.bad; again = r.is(`,`) {
		r.next(`{"index":`)
		i := r.number(2)
		r.next(`,"value":`)
		v.Quote.PCRs = append(v.Quote.PCRs, TpmPCR{int(i), string(r.text())})
		r.next(`}`)
	}
	r.next(`]}`)
	if r.is(`,"list":`) {
		v.List = r.bytes()
	}
	v.More = r.is(`,"more":true`)
	r.next(`}`)
	if !r.end() {
		return false
	}
	*d = v
	return true
}
