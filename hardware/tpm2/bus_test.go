package tpm2

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"portcullis/hardware"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// bus is what a probe on the wires sees and can change.
type bus struct {
	transport.TPMCloser
	seen   [][]byte
	answer func(command, answer []byte) ([]byte, error) // nil: as the chip answers
}

func (b *bus) Send(command []byte) ([]byte, error) {
	answer, err := b.TPMCloser.Send(command)
	b.seen = append(b.seen, bytes.Clone(command), bytes.Clone(answer))
	if err == nil && b.answer != nil {
		return b.answer(command, answer)
	}
	return answer, err
}

func (w *world) bus(t testing.TB, cfg Config) (*bus, *TPM) {
	t.Helper()
	if err := cfg.complete(); err != nil {
		t.Fatal(err)
	}
	c, err := dial(w.chip.Path, cfg.Timeout)
	if err != nil {
		t.Fatal(err)
	}
	b := &bus{TPMCloser: c}
	chip, err := New(b, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return b, chip
}

func (b *bus) contains(secret []byte) bool {
	for _, m := range b.seen {
		if bytes.Contains(m, secret) {
			return true
		}
	}
	return false
}

func commandCode(m []byte) tpm2.TPMCC { return tpm2.TPMCC(binary.BigEndian.Uint32(m[6:])) }

func TestAttackProbeOnTheBusReadsNoSecret(t *testing.T) {
	w := newWorld(t)
	_, _ = w.sealed(t)
	w.start(t, w.config(t, 5))
	b, c := w.bus(t, w.config(t, 5))
	secret := []byte("thirty-two bytes of a secret....")
	blob, err := c.Seal(t.Context(), testLabel, secret)
	if err != nil {
		t.Fatal(err)
	}
	wantSecret(t, c, blob, secret)
	for _, part := range [][]byte{secret, secret[:8], secret[24:], labelDigest(testLabel)} {
		if b.contains(part) {
			t.Errorf("%q crossed the bus in the clear", part)
		}
	}
	// The probe works: what is not secret it does see.
	seal, unseal := false, false
	for _, m := range b.seen {
		seal = seal || commandCode(m) == tpm2.TPMCCCreate
		unseal = unseal || commandCode(m) == tpm2.TPMCCUnseal
	}
	if !b.contains(secret[:0]) || !seal || !unseal {
		t.Error("the probe saw no Create and no Unseal: this test no longer looks")
	}
}

// Something on the bus answers for the storage key with a key of its own, to have
// the session's salt encrypted to it.
func TestAttackInterposersKeyInPlaceOfTheStorageKey(t *testing.T) {
	w := newWorld(t)
	_, blob := w.sealed(t)
	w.start(t, w.config(t, 5))
	b, c := w.bus(t, w.config(t, 5))
	srk, err := c.storageKey(false)
	if err != nil {
		t.Fatal(err)
	}
	own := newPolicyKey(t)
	forged := srk.Public
	point, err := own.PublicKey.ECDH()
	if err != nil {
		t.Fatal(err)
	}
	forged.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
		X: tpm2.TPM2BECCParameter{Buffer: point.Bytes()[1:33]}, Y: tpm2.TPM2BECCParameter{Buffer: point.Bytes()[33:]}})
	replaced := false
	b.seen = nil
	b.answer = func(command, answer []byte) ([]byte, error) {
		if commandCode(command) != tpm2.TPMCCReadPublic || binary.BigEndian.Uint32(command[10:]) != DefaultSRK {
			return answer, nil
		}
		replaced = true
		// The name beside it is the honest one: it must not be believed.
		old := tpm2.Marshal(tpm2.New2B(srk.Public))
		return bytes.Replace(answer, old, tpm2.Marshal(tpm2.New2B(forged)), 1), nil
	}
	wantRefused(t, "interposer's key", c, blob, hardware.ReasonForeignBlob)
	if !replaced {
		t.Error("nothing was replaced: this test no longer attacks anything")
	}
	for _, m := range b.seen {
		if commandCode(m) == tpm2.TPMCCStartAuthSession {
			t.Error("a session was salted to the interposer's key")
		}
	}
}

// A flipped bit in the encrypted answer is seen: the session authenticates.
func TestAttackChangedAnswerOfUnseal(t *testing.T) {
	w := newWorld(t)
	_, blob := w.sealed(t)
	w.start(t, w.config(t, 5))
	b, c := w.bus(t, w.config(t, 5))
	b.answer = func(command, answer []byte) ([]byte, error) {
		if commandCode(command) == tpm2.TPMCCUnseal {
			answer[20] ^= 1
		}
		return answer, nil
	}
	wantRefused(t, "changed answer", c, blob, hardware.ReasonFailed)
}

type silent struct{ release chan struct{} }

func (s silent) Send([]byte) ([]byte, error) { <-s.release; return nil, errors.New("closed") }
func (s silent) Close() error                { close(s.release); return nil }

func TestChipThatDoesNotAnswerIsBusy(t *testing.T) {
	c, err := New(silent{make(chan struct{})}, Config{Timeout: 20 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, err = c.Identify(t.Context())
	wantReason(t, "no answer", err, hardware.ReasonBusy)

	c, err = New(silent{make(chan struct{})}, Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = c.Identify(ctx)
	wantReason(t, "cancelled", err, hardware.ReasonBusy)
}

// late keeps its first answer back.
type late struct {
	transport.TPMCloser
	release chan struct{}
	sent    int
}

func (l *late) Send(command []byte) ([]byte, error) {
	if l.sent++; l.sent == 1 {
		<-l.release
	}
	return l.TPMCloser.Send(command)
}

// An answer that comes too late must not become that of the next command.
func TestLateAnswerIsNobodys(t *testing.T) {
	w := newWorld(t)
	l := &late{release: make(chan struct{})}
	_, honest := w.bus(t, Config{})
	l.TPMCloser = honest.link.c
	c, err := New(l, Config{Timeout: 20 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Identify(t.Context())
	wantReason(t, "no answer", err, hardware.ReasonBusy)
	_, err = c.Random(t.Context(), 8)
	wantReason(t, "after it", err, hardware.ReasonBusy)
	close(l.release)
}

func TestChipThatAsksToBeAskedAgain(t *testing.T) {
	w := newWorld(t)
	b, c := w.bus(t, w.config(t, 5))
	left := 3
	b.answer = func(command, answer []byte) ([]byte, error) {
		if left--; left >= 0 {
			return []byte{0x80, 1, 0, 0, 0, 10, 0, 0, 9, 0x22}, nil // TPM_RC_RETRY
		}
		return answer, nil
	}
	if _, err := c.Identify(t.Context()); err != nil {
		t.Error(err)
	}
	// For ever, it is busy.
	c.link.timeout = 30 * time.Millisecond
	left = 1 << 30
	_, err := c.Identify(t.Context())
	wantReason(t, "for ever", err, hardware.ReasonBusy)
}

// garbage answers with what the fuzzer says, in turn.
type garbage struct {
	answers [][]byte
	honest  transport.TPMCloser
	damage  *rand.Rand
}

func (g *garbage) Close() error { return nil }

func (g *garbage) Send(command []byte) ([]byte, error) {
	if g.honest != nil {
		answer, err := g.honest.Send(command)
		if err == nil && len(answer) > 0 {
			switch g.damage.IntN(4) {
			case 0: // one octet, the length in the header stays right
				answer[g.damage.IntN(len(answer))] ^= byte(1 + g.damage.IntN(255))
			case 1: // cut, with a header that knows
				if n := headerSize + g.damage.IntN(len(answer)-headerSize+1); n <= len(answer) {
					answer = answer[:n]
					binary.BigEndian.PutUint32(answer[2:], uint32(n))
				}
			}
		}
		return answer, err
	}
	if len(g.answers) == 0 {
		return nil, errors.New("no more answers")
	}
	a := g.answers[0]
	g.answers = g.answers[1:]
	return a, nil
}

// everything calls each operation that reads answers; none may panic or hand out
// a secret that is not the secret.
func everything(t testing.TB, c *TPM, blob []byte, secret []byte) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	_, _ = c.Identify(ctx)
	_, _ = c.Random(ctx, 40)
	_, _ = c.Handles(ctx)
	_, _ = c.Counter(ctx)
	_, _ = c.Banks(ctx)
	_, _ = c.ReadPCRs(ctx, []int{8, 9, 11})
	_, _, _ = c.LockoutState(ctx)
	_, _ = c.Enrol(ctx, EKECC)
	_, _ = c.Quote(ctx, make([]byte, 32), []int{8})
	if got, err := c.Unseal(ctx, testLabel, blob); err == nil && !bytes.Equal(got, secret) {
		t.Errorf("a secret that is not the secret: %x", got)
	}
	_, _ = c.Seal(ctx, testLabel, secret)
	_, _ = c.Sign(ctx, [32]byte{1})
}

func FuzzAnswers(f *testing.F) {
	w := newWorld(f)
	secret, blob := w.sealed(f)
	cfg := w.config(f, 5)
	cfg.Timeout = time.Second
	w.start(f, cfg)
	b, c := w.bus(f, cfg)
	everything(f, c, blob, secret)
	for i := 1; i < len(b.seen); i += 2 {
		f.Add(b.seen[i], uint8(0))
	}
	f.Add([]byte{}, uint8(1))
	f.Add([]byte{0x80, 1, 0, 0, 0, 10, 0, 0, 0, 0}, uint8(2))
	f.Fuzz(func(t *testing.T, answer []byte, n uint8) {
		g := &garbage{}
		for range int(n) + 1 {
			a := bytes.Clone(answer)
			if len(a) >= headerSize {
				binary.BigEndian.PutUint32(a[2:], uint32(len(a)))
			}
			g.answers = append(g.answers, a)
		}
		c, err := New(g, cfg)
		if err != nil {
			t.Fatal(err)
		}
		everything(t, c, blob, secret)
	})
}

// Damage in the middle of an honest conversation.
func TestDamagedAnswersNeverPanic(t *testing.T) {
	w := newWorld(t)
	secret, blob := w.sealed(t)
	cfg := w.config(t, 5)
	cfg.Timeout = time.Second
	for seed := range uint64(12) {
		w.start(t, cfg)
		_, honest := w.bus(t, cfg)
		c, err := New(&garbage{honest: honest.link.c, damage: rand.New(rand.NewPCG(seed, 1))}, cfg)
		if err != nil {
			t.Fatal(err)
		}
		everything(t, c, blob, secret)
	}
}
