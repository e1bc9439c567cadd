package tpm2

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"portcullis/hardware/tpmpolicy"

	"github.com/google/go-tpm/tpm2"
)

// MaxIncrements is how far a counter is raised at once. NV memory wears out.
const MaxIncrements = 4096

// Counter returns how many releases the chip has accepted, 0 where the counter
// does not exist yet.
func (t *TPM) Counter(ctx context.Context) (uint64, error) {
	var v uint64
	err := t.do(ctx, "read counter", func() (err error) {
		v, err = t.counter(t.cfg.NVIndex)
		return err
	})
	return v, err
}

// RaiseCounter raises the counter of accepted releases until it is to (1 to
// tpmpolicy.MaxSequence), and makes it where it is missing. It can be repeated and
// interrupted. Reasons: counter-ahead, counter-far, handle-foreign.
func (t *TPM) RaiseCounter(ctx context.Context, to uint64) error {
	if to < 1 || to > tpmpolicy.MaxSequence {
		return fmt.Errorf("raise counter: %d is not between 1 and %d", to, uint64(tpmpolicy.MaxSequence))
	}
	return t.do(ctx, "raise counter", func() error { return t.raise(t.cfg.NVIndex, to) })
}

func (t *TPM) raise(index uint32, to uint64) error {
	v, err := t.counter(index)
	if err != nil {
		return err
	}
	if v > to {
		return counterAhead(v, to)
	}
	if to-v > MaxIncrements && v > 0 {
		return refuse(ReasonCounterFar, "from %d to %d are more than %d increments", v, to, MaxIncrements)
	}
	if v == 0 {
		// The chip chooses the first value: above all that it ever counted.
		if v, err = t.startCounter(index); err != nil {
			return err
		}
		if v > to {
			return counterAhead(v, to)
		}
	}
	if to-v > MaxIncrements {
		return refuse(ReasonCounterFar, "from %d to %d are more than %d increments", v, to, MaxIncrements)
	}
	for ; v < to; v++ {
		if err := t.increment(index); err != nil {
			return err
		}
	}
	if v, err = t.counter(index); err != nil {
		return err
	}
	if v != to {
		return refuse(ReasonCounterAhead, "counter %#x is %d after it was raised to %d: somebody else raises it", index, v, to)
	}
	return nil
}

func counterAhead(v, to uint64) error {
	return refuse(ReasonCounterAhead, "this chip has accepted release %d, this is %d: build with a higher --sequence", v, to)
}

// counterState reads what is at an index.
func (t *TPM) counterState(index uint32) (exists, written bool, err error) {
	r, err := tpm2.NVReadPublic{NVIndex: tpm2.TPMHandle(index)}.Execute(t.link)
	if errors.Is(err, tpm2.TPMRCHandle) {
		return false, false, nil
	}
	if err != nil {
		return false, false, fmt.Errorf("counter %#x: %w", index, err)
	}
	p, err := r.NVPublic.Contents()
	if err != nil {
		return false, false, err
	}
	written = p.Attributes.Written
	p.Attributes.Written = true
	name, err := tpm2.NVName(p)
	if err != nil {
		return false, false, err
	}
	if !bytes.Equal(name.Buffer, tpmpolicy.CounterName(index)) {
		return false, false, refuse(ReasonHandleForeign, "NV index %#x is not a counter of ours", index)
	}
	return true, written, nil
}

// counter returns the value, 0 where the counter is not there or never raised.
func (t *TPM) counter(index uint32) (uint64, error) {
	exists, written, err := t.counterState(index)
	if err != nil || !exists || !written {
		return 0, err
	}
	r, err := tpm2.NVRead{AuthHandle: counterAuth(index, true), NVIndex: counterHandle(index, true), Size: tpmpolicy.CounterSize}.Execute(t.link)
	if err != nil {
		return 0, fmt.Errorf("counter %#x: %w", index, err)
	}
	if len(r.Data.Buffer) != tpmpolicy.CounterSize {
		return 0, fmt.Errorf("counter %#x has %d bytes", index, len(r.Data.Buffer))
	}
	return binary.BigEndian.Uint64(r.Data.Buffer), nil
}

// startCounter makes a counter where it is missing and gives it its first value.
func (t *TPM) startCounter(index uint32) (uint64, error) {
	exists, written, err := t.counterState(index)
	if err != nil {
		return 0, err
	}
	if !exists {
		_, err := tpm2.NVDefineSpace{AuthHandle: tpm2.TPMRHOwner, PublicInfo: tpm2.New2B(counterPublic(index, false))}.Execute(t.link)
		if err != nil {
			return 0, fmt.Errorf("make counter %#x: %w", index, err)
		}
	}
	if !written {
		_, err = tpm2.NVIncrement{AuthHandle: counterAuth(index, false), NVIndex: counterHandle(index, false)}.Execute(t.link)
		if err != nil {
			return 0, fmt.Errorf("start counter %#x: %w", index, err)
		}
	}
	return t.counter(index)
}

func (t *TPM) increment(index uint32) error {
	_, err := tpm2.NVIncrement{AuthHandle: counterAuth(index, true), NVIndex: counterHandle(index, true)}.Execute(t.link)
	if err != nil {
		return fmt.Errorf("raise counter %#x: %w", index, err)
	}
	return nil
}

// counterPublic is the public area that tpmpolicy.CounterName is the name of.
func counterPublic(index uint32, written bool) tpm2.TPMSNVPublic {
	return tpm2.TPMSNVPublic{
		NVIndex: tpm2.TPMHandle(index), NameAlg: tpm2.TPMAlgSHA256, DataSize: tpmpolicy.CounterSize,
		Attributes: tpm2.TPMANV{OwnerWrite: true, AuthWrite: true, NT: tpm2.TPMNTCounter, OwnerRead: true, AuthRead: true, NoDA: true, Written: written},
	}
}

func counterHandle(index uint32, written bool) tpm2.NamedHandle {
	p := counterPublic(index, written)
	name, err := tpm2.NVName(&p)
	if err != nil { // of a constant: it cannot fail
		panic(err)
	}
	return tpm2.NamedHandle{Handle: tpm2.TPMHandle(index), Name: *name}
}

func counterAuth(index uint32, written bool) tpm2.AuthHandle {
	h := counterHandle(index, written)
	return tpm2.AuthHandle{Handle: h.Handle, Name: h.Name, Auth: tpm2.PasswordAuth(nil)}
}
