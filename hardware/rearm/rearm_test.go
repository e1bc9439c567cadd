package rearm

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"testing"
	"time"

	"portcullis/hardware"
	"portcullis/hardware/fake"
	"portcullis/images/card"
	"portcullis/images/luks2"
)

const deviceSize = card.CryptHeader + 1<<20

// errPower is the power cut.
var errPower = errors.New("power cut")

// disk is a volume in memory whose power fails after some writes. A write that is cut
// leaves its first half.
type disk struct {
	b      []byte
	writes int
	cut    int // the write that is cut, from 1; 0: none
	off    bool
}

func (d *disk) ReadAt(p []byte, off int64) (int, error) {
	if d.off {
		return 0, errPower
	}
	if off < 0 || off+int64(len(p)) > int64(len(d.b)) {
		return 0, io.ErrUnexpectedEOF
	}
	return copy(p, d.b[off:]), nil
}

func (d *disk) WriteAt(p []byte, off int64) (int, error) {
	if d.off {
		return 0, errPower
	}
	d.writes++
	if d.writes == d.cut {
		d.off = true
		return copy(d.b[off:], p[:len(p)/2]), errPower
	}
	return copy(d.b[off:], p), nil
}

func (d *disk) Sync() error {
	if d.off {
		return errPower
	}
	return nil
}

func chip(t *testing.T) *fake.Chip {
	t.Helper()
	k, err := fake.New(fake.Config{Profile: card.ProfileDev, Approved: map[[32]byte]uint64{{}: 1}})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

type volume struct {
	disk     []byte // as enrolled
	key      []byte
	recovery *luks2.RecoveryKey
	old      *fake.Chip
}

// enrolled makes a volume as first boot leaves it, bound to a chip.
func enrolled(t *testing.T) *volume {
	t.Helper()
	c := chip(t)
	v := enrolledOn(t, c, hardware.BackendFake)
	v.old = c
	return v
}

func enrolledOn(t *testing.T, root hardware.Root, backend hardware.Backend) *volume {
	t.Helper()
	v := &volume{key: make([]byte, luks2.VolumeKeySize)}
	if _, err := rand.Read(v.key); err != nil {
		t.Fatal(err)
	}
	d := &disk{b: make([]byte, deviceSize)}
	h, err := luks2.Format(d, deviceSize, luks2.Options{}, v.key)
	if err != nil {
		t.Fatal(err)
	}
	o := options(d, v, root)
	o.Backend = backend
	if _, _, err := bind(t.Context(), o, h, v.key, nil); err != nil {
		t.Fatal(err)
	}
	if v.recovery, err = luks2.NewRecoveryKey(nil); err != nil {
		t.Fatal(err)
	}
	// The KDF of people takes 64 MiB and a second; the chip's is as good for a test.
	slot, err := h.AddSlot(d, v.key, v.recovery.Passphrase(), luks2.ForChip())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.SetToken(-1, json.RawMessage(fmt.Sprintf(`{"type":%q,"keyslots":[%q]}`, luks2.RecoveryTokenType, strconv.Itoa(slot)))); err != nil {
		t.Fatal(err)
	}
	if err := h.Write(d); err != nil {
		t.Fatal(err)
	}
	v.disk = d.b
	return v
}

func options(d *disk, v *volume, root hardware.Root) Options {
	return Options{Device: d, Size: deviceSize, Recovery: v.recovery, Root: root, Backend: hardware.BackendFake,
		Posture: hardware.PostureCardTheft, Platform: "self", Now: time.Unix(1_800_000_000, 0)}
}

// opens reports which tokens a chip opens the volume with, as pi-init does.
func opens(t *testing.T, d *disk, root hardware.Root, key []byte) int {
	t.Helper()
	h, _, err := luks2.Read(d, deviceSize)
	if err != nil {
		t.Fatalf("no header is left: %v", err)
	}
	n := 0
	for _, tok := range h.Tokens() {
		if tok.Type != hardware.TokenType {
			continue
		}
		p, err := hardware.ParseToken(tok.JSON)
		if err != nil {
			t.Fatal(err)
		}
		secret, err := root.Unseal(t.Context(), card.SealLabel(h.UUID()), p.Blob)
		if err != nil {
			continue
		}
		got, _, err := h.Unlock(d, card.ChipPassphrase(secret), tok.Slots...)
		if err == nil && bytes.Equal(got, key) {
			n++
		}
	}
	return n
}

func recoveryOpens(t *testing.T, d *disk, v *volume) {
	t.Helper()
	h, _, err := luks2.Read(d, deviceSize)
	if err != nil {
		t.Fatalf("no header is left: %v", err)
	}
	got, _, err := h.Unlock(d, v.recovery.Passphrase())
	if err != nil || !bytes.Equal(got, v.key) {
		t.Fatalf("the recovery key does not open the volume: %v", err)
	}
}

func finished(t *testing.T, d *disk, v *volume, root hardware.Root) {
	t.Helper()
	recoveryOpens(t, d, v)
	if n := opens(t, d, root, v.key); n != 1 {
		t.Errorf("the new chip opens %d tokens", n)
	}
	if n := opens(t, d, v.old, v.key); n != 0 {
		t.Errorf("the old chip opens %d tokens", n)
	}
	h, health, err := luks2.Read(d, deviceSize)
	if err != nil || !health.Good() {
		t.Fatal(health, err)
	}
	if len(h.Slots()) != 2 || len(h.Tokens()) != 2 {
		t.Errorf("%d keyslots, %d tokens are left", len(h.Slots()), len(h.Tokens()))
	}
}

func TestClonedCardIsBoundToTheNewChip(t *testing.T) {
	v := enrolled(t)
	d, now := &disk{b: bytes.Clone(v.disk)}, chip(t)
	if n := opens(t, d, now, v.key); n != 0 {
		t.Fatalf("the new chip opens %d tokens before", n)
	}
	r, err := Run(t.Context(), options(d, v, now))
	if err != nil || len(r.Removed) != 1 || r.Repaired {
		t.Fatalf("%+v, %v", r, err)
	}
	finished(t, d, v, now)
	// Once more: the chip is the same, the keyslot is a new one.
	if _, err := Run(t.Context(), options(d, v, now)); err != nil {
		t.Fatal(err)
	}
	finished(t, d, v, now)
}

func TestPowerCutAtEveryWriteLosesNothing(t *testing.T) {
	v := enrolled(t)
	whole := &disk{b: bytes.Clone(v.disk)}
	if _, err := Run(t.Context(), options(whole, v, chip(t))); err != nil {
		t.Fatal(err)
	}
	if whole.writes < 5 {
		t.Fatalf("only %d writes", whole.writes)
	}
	t.Logf("%d writes", whole.writes)
	for cut := 1; cut <= whole.writes; cut++ {
		now := chip(t)
		d := &disk{b: bytes.Clone(v.disk), cut: cut}
		if _, err := Run(t.Context(), options(d, v, now)); err == nil {
			t.Fatalf("write %d was cut and Run did not see it", cut)
		}
		after := &disk{b: d.b}
		recoveryOpens(t, after, v)
		// And cut again on the way of the second run, then to the end.
		again := &disk{b: bytes.Clone(d.b), cut: cut}
		_, err := Run(t.Context(), options(again, v, now))
		if err != nil && !errors.Is(err, errPower) {
			t.Fatalf("cut at %d, second run: %v", cut, err)
		}
		last := &disk{b: again.b}
		recoveryOpens(t, last, v)
		if _, err := Run(t.Context(), options(last, v, now)); err != nil {
			t.Fatalf("cut at %d twice, third run: %v", cut, err)
		}
		finished(t, last, v, now)
	}
}

func TestOldSlotDiesOnlyWhenTheNewOneIsStored(t *testing.T) {
	v := enrolled(t)
	probe := &disk{b: bytes.Clone(v.disk)}
	if _, err := Run(t.Context(), options(probe, v, chip(t))); err != nil {
		t.Fatal(err)
	}
	for cut := 1; cut <= probe.writes; cut++ {
		now := chip(t)
		d := &disk{b: bytes.Clone(v.disk), cut: cut}
		if _, err := Run(t.Context(), options(d, v, now)); err == nil {
			t.Fatal("not cut")
		}
		after := &disk{b: d.b}
		if opens(t, after, v.old, v.key)+opens(t, after, now, v.key) == 0 {
			t.Errorf("cut at write %d: neither chip opens the volume", cut)
		}
	}
}

func TestRefusals(t *testing.T) {
	v := enrolled(t)
	other, err := luks2.NewRecoveryKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change func(t *testing.T, o *Options, d *disk)
		reason Reason
	}{
		"another recovery key": {func(_ *testing.T, o *Options, _ *disk) { o.Recovery = other }, ReasonRecovery},
		"no header":            {func(_ *testing.T, _ *Options, d *disk) { clear(d.b) }, ReasonHeader},
		"chip refuses":         {func(_ *testing.T, o *Options, _ *disk) { o.Root = refusing{o.Root} }, ReasonChip},
		"chip's bytes short":   {func(_ *testing.T, o *Options, _ *disk) { o.Root = shortRandom{o.Root} }, ReasonChip},
		"posture without one":  {func(_ *testing.T, o *Options, _ *disk) { o.Posture = "" }, ReasonChip},
		"no recovery slot": {func(t *testing.T, o *Options, d *disk) {
			h, _, err := luks2.Read(d, deviceSize)
			if err != nil {
				t.Fatal(err)
			}
			for _, tok := range h.Tokens() {
				if tok.Type == luks2.RecoveryTokenType {
					if err := h.RemoveToken(tok.ID); err != nil {
						t.Fatal(err)
					}
				}
			}
			if err := h.Write(d); err != nil {
				t.Fatal(err)
			}
		}, ReasonRecovery},
		"token of a newer release": {func(t *testing.T, o *Options, d *disk) {
			h, _, err := luks2.Read(d, deviceSize)
			if err != nil {
				t.Fatal(err)
			}
			for _, tok := range h.Tokens() {
				if tok.Type == hardware.TokenType {
					newer := strings.Replace(string(tok.JSON), `"version":1`, `"version":9`, 1)
					if _, err := h.SetToken(tok.ID, json.RawMessage(newer)); err != nil {
						t.Fatal(err)
					}
				}
			}
			if err := h.Write(d); err != nil {
				t.Fatal(err)
			}
		}, ReasonBackend},
	} {
		d := &disk{b: bytes.Clone(v.disk)}
		o := options(d, v, chip(t))
		c.change(t, &o, d)
		before := d.writes
		_, err := Run(t.Context(), o)
		var e *Error
		if !errors.As(err, &e) || e.Reason != c.reason {
			t.Errorf("%s: %v instead of %s", name, err, c.reason)
		}
		if err != nil && strings.Contains(err.Error(), string(v.recovery.Passphrase())) {
			t.Errorf("%s: the error holds the recovery key", name)
		}
		if name != "posture without one" && d.writes != before {
			t.Errorf("%s: %d writes", name, d.writes-before)
		}
	}
}

// refusing is a chip that seals nothing.
type refusing struct{ hardware.Root }

func (refusing) Seal(context.Context, string, []byte) (json.RawMessage, error) {
	return nil, &hardware.Error{Reason: hardware.ReasonPolicy, Err: errors.New("no")}
}

// shortRandom is a chip whose generator stops early.
type shortRandom struct{ hardware.Root }

func (shortRandom) Random(context.Context, int) ([]byte, error) { return []byte{1}, nil }

func TestDamagedHeaderIsRepairedFirst(t *testing.T) {
	v := enrolled(t)
	d, now := &disk{b: bytes.Clone(v.disk)}, chip(t)
	clear(d.b[:4096])
	r, err := Run(t.Context(), options(d, v, now))
	if err != nil || !r.Repaired {
		t.Fatalf("%+v, %v", r, err)
	}
	finished(t, d, v, now)
}

func TestEndOfContextStoresNothing(t *testing.T) {
	v := enrolled(t)
	d := &disk{b: bytes.Clone(v.disk)}
	ctx, cancel := context.WithCancel(t.Context())
	o := options(d, v, chip(t))
	o.Progress = func(s string) {
		if strings.HasPrefix(s, "sealing") {
			cancel()
		}
	}
	if _, err := Run(ctx, o); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if opens(t, &disk{b: d.b}, v.old, v.key) != 1 {
		t.Error("the old chip does not open the volume any more")
	}
}
