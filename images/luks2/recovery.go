package luks2

import (
	"crypto/rand"
	"fmt"
	"io"
)

// RecoveryKey is a passphrase for people to write down: 256 random bits as 8 groups
// of 8 letters with dashes between. Alphabet and form are systemd's, so that
// systemd-cryptsetup opens the slot as well. The letters sit at the same place on
// almost every keyboard. It never prints itself: formatting verbs show [redacted].
type RecoveryKey struct{ text []byte }

// RecoveryTokenType is the type of the token that marks a slot with such a key.
const RecoveryTokenType = "systemd-recovery"

const (
	modhex         = "cbdefghijklnrtuv" // the letter at n means the four bits n
	recoveryGroups = 8
	recoveryGroup  = 8
	// RecoveryKeySize is the length of the canonical form: letters and dashes.
	RecoveryKeySize = recoveryGroups*(recoveryGroup+1) - 1
	// maxTyped caps what a human may type, spaces included.
	maxTyped = 512
)

// NewRecoveryKey makes a key from random, nil being crypto/rand. pi-init gives a
// reader that mixes the chip's randomness in.
func NewRecoveryKey(random io.Reader) (*RecoveryKey, error) {
	if random == nil {
		random = rand.Reader
	}
	var raw [recoveryGroups * recoveryGroup / 2]byte
	defer clear(raw[:])
	if _, err := io.ReadFull(random, raw[:]); err != nil {
		return nil, &Error{ReasonDevice, err}
	}
	text := make([]byte, 0, RecoveryKeySize)
	for i, b := range raw {
		if i > 0 && i%(recoveryGroup/2) == 0 {
			text = append(text, '-')
		}
		text = append(text, modhex[b>>4], modhex[b&15])
	}
	return &RecoveryKey{text}, nil
}

// ParseRecoveryKey reads what a human typed: capitals, and spaces or dashes anywhere,
// do not matter. The refusal says where it is wrong, never what was typed.
func ParseRecoveryKey(typed []byte) (*RecoveryKey, error) {
	if len(typed) > maxTyped {
		return nil, refuse(ReasonRecoveryKey, "%d characters are too many", len(typed))
	}
	text := make([]byte, 0, RecoveryKeySize)
	letters := 0
	for _, c := range typed {
		switch c {
		case ' ', '-', '\t', '\r', '\n', '_':
			continue
		}
		if c >= 'A' && c <= 'Z' {
			c += 'a' - 'A'
		}
		if !isModhex(c) {
			clear(text)
			return nil, refuse(ReasonRecoveryKey, "group %d, letter %d is none of %s", letters/recoveryGroup+1, letters%recoveryGroup+1, modhex)
		}
		if letters == recoveryGroups*recoveryGroup {
			clear(text)
			return nil, refuse(ReasonRecoveryKey, "more than %d letters", letters)
		}
		if letters > 0 && letters%recoveryGroup == 0 {
			text = append(text, '-')
		}
		text = append(text, c)
		letters++
	}
	if letters != recoveryGroups*recoveryGroup {
		clear(text)
		return nil, refuse(ReasonRecoveryKey, "%d letters instead of %d", letters, recoveryGroups*recoveryGroup)
	}
	return &RecoveryKey{text}, nil
}

func isModhex(c byte) bool {
	for i := range len(modhex) {
		if modhex[i] == c {
			return true
		}
	}
	return false
}

// Passphrase is the canonical form: the passphrase of the keyslot, and what is shown
// to the operator. The slice is the key's own: Wipe clears it.
func (k *RecoveryKey) Passphrase() []byte { return k.text }

// Wipe clears the key.
func (k *RecoveryKey) Wipe() { clear(k.text) }

// Format keeps the key out of everything that fmt makes, %x and %#v included.
func (RecoveryKey) Format(f fmt.State, _ rune) { io.WriteString(f, redacted) }

// MarshalText keeps the key out of JSON and of structured logs.
func (RecoveryKey) MarshalText() ([]byte, error) { return []byte(redacted), nil }

const redacted = "[redacted]"
