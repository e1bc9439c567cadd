package luks2

import (
	"bytes"
	"encoding/json"
)

// Token is an object of the header that tells how to get the passphrase of some
// keyslots. Tokens of types that this package does not know are kept byte for byte.
type Token struct {
	ID    int
	Type  string
	Slots []int
	JSON  json.RawMessage
}

// Tokens lists the tokens by number.
func (h *Header) Tokens() []Token {
	var out []Token
	for _, n := range sorted(h.meta.tokens) {
		t, err := h.meta.checkToken(h.meta.tokens[n])
		if err != nil {
			continue // cannot be: Read and SetToken have checked it
		}
		t.ID, t.JSON = n, bytes.Clone(t.JSON)
		out = append(out, t)
	}
	return out
}

// SetToken stores a token under a number from 0 to 31, or under the first free one
// for id -1, and returns the number. Its keyslots must be there. Write stores it.
func (h *Header) SetToken(id int, token json.RawMessage) (int, error) {
	if err := noDuplicates(token); err != nil {
		return 0, refuse(ReasonUsage, "token: %w", err)
	}
	if bytes.IndexByte(token, 0) >= 0 {
		return 0, refuse(ReasonUsage, "token: a zero byte")
	}
	if _, err := h.meta.checkToken(token); err != nil {
		return 0, refuse(ReasonUsage, "token: %w", err)
	}
	if id == -1 {
		if id = free(h.meta.tokens); id < 0 {
			return 0, refuse(ReasonFull, "all %d tokens are in use", MaxSlots)
		}
	}
	if id < 0 || id >= MaxSlots {
		return 0, refuse(ReasonUsage, "token %d", id)
	}
	if h.meta.tokens == nil {
		h.meta.tokens = make(map[int]json.RawMessage)
	}
	h.meta.tokens[id] = bytes.Clone(token)
	return id, nil
}

// RemoveToken takes a token out of the header; its keyslots stay. Write stores that.
func (h *Header) RemoveToken(id int) error {
	if _, ok := h.meta.tokens[id]; !ok {
		return refuse(ReasonNoSlot, "there is no token %d", id)
	}
	delete(h.meta.tokens, id)
	return nil
}

// tokensWithout returns the tokens with a keyslot taken out of their lists. A token
// that named no other one goes: it could open nothing.
func (h *Header) tokensWithout(slot int) (map[int]json.RawMessage, error) {
	out := make(map[int]json.RawMessage, len(h.meta.tokens))
	for n, raw := range h.meta.tokens {
		t, err := h.meta.checkToken(raw)
		if err != nil {
			return nil, err
		}
		left := []number{}
		for _, s := range t.Slots {
			if s != slot {
				left = append(left, number(s))
			}
		}
		switch {
		case len(left) == len(t.Slots):
			out[n] = raw
		case len(left) > 0:
			var object map[string]json.RawMessage
			if err := json.Unmarshal(raw, &object); err != nil {
				return nil, &Error{ReasonMetadata, err}
			}
			if object["keyslots"], err = json.Marshal(left); err != nil {
				return nil, &Error{ReasonUsage, err}
			}
			var b bytes.Buffer
			if err := encodeValue(&b, object); err != nil {
				return nil, err
			}
			out[n] = b.Bytes()
		}
	}
	return out, nil
}
