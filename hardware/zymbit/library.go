package zymbit

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"encoding/asn1"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"time"

	"portcullis/hardware"
	"portcullis/internal/clock"
)

// Library is the vendor's libzk_app_utils.so, call by call, so that everything around
// it can be tested without one. Implementations are not safe for concurrent use.
type Library interface {
	Random(n int) ([]byte, error)
	Lock(plain []byte) ([]byte, error)
	Unlock(locked []byte) ([]byte, error)
	// SignDigest returns r ‖ s, 64 bytes, of the P-256 key in slot.
	SignDigest(digest [32]byte, slot int) ([]byte, error)
	// PublicKey returns x ‖ y, 64 bytes, of the P-256 key in slot.
	PublicKey(slot int) ([]byte, error)
	Model() (string, error)
	Serial() (string, error)
	Firmware() (string, error)
	// WaitPerimeter waits for a breach; false after timeout without one.
	WaitPerimeter(timeout time.Duration) (bool, error)
	// Perimeter returns for every channel the time of its first breach in seconds
	// since 1970, 0 for none.
	Perimeter() ([]uint32, error)
	// ClearPerimeter forgets the breaches and arms the channels again.
	ClearPerimeter() error
	LEDOn() error
	LEDOff() error
	// LEDFlash flashes times times, 0 for ever.
	LEDFlash(on, off time.Duration, times uint32) error
	Close() error
}

// Chip is a Root over a Library. It runs inside zymbitd only.
type Chip struct {
	lib   Library
	slot  int
	clock clock.Clock
}

var _ hardware.Root = (*Chip)(nil)

// NewChip takes over lib. Slot is that of the device key; the vendor's modules have
// theirs in slot 0.
func NewChip(lib Library, slot int, c clock.Clock) *Chip {
	return &Chip{lib: lib, slot: slot, clock: c}
}

// Identify asks the module.
func (c *Chip) Identify(context.Context) (hardware.Identity, error) {
	id := hardware.Identity{Backend: hardware.BackendZymbit, Manufacturer: "Zymbit", UnverifiedOnHardware: true}
	for _, q := range []struct {
		to  *string
		ask func() (string, error)
	}{{&id.Model, c.lib.Model}, {&id.Serial, c.lib.Serial}, {&id.Firmware, c.lib.Firmware}} {
		s, err := q.ask()
		if err != nil {
			return hardware.Identity{}, failed(err)
		}
		*q.to = printable(s)
	}
	return id, nil
}

// Random returns n bytes of the module's generator.
func (c *Chip) Random(_ context.Context, n int) ([]byte, error) {
	if n < 1 || n > 512 {
		return nil, failed(fmt.Errorf("%d bytes are not 1 to 512", n))
	}
	b, err := c.lib.Random(n)
	if err != nil {
		return nil, failed(err)
	}
	if len(b) != n {
		return nil, failed(fmt.Errorf("%d random bytes instead of %d", len(b), n))
	}
	return b, nil
}

// Seal locks secret to the module and the card and Pi it is bound to.
func (c *Chip) Seal(ctx context.Context, label string, secret []byte) (json.RawMessage, error) {
	return seal(ctx, c, label, secret)
}

// Unseal unlocks a blob of Seal's, also one that Exec made.
func (c *Chip) Unseal(ctx context.Context, label string, blob json.RawMessage) ([]byte, error) {
	return unseal(ctx, c, label, blob)
}

func (c *Chip) lock(_ context.Context, p []byte) ([]byte, error) {
	b, err := c.lib.Lock(p)
	if err != nil {
		return nil, refused(err)
	}
	return b, nil
}

func (c *Chip) unlock(_ context.Context, l []byte) ([]byte, error) {
	b, err := c.lib.Unlock(l)
	if err != nil {
		return nil, refused(err)
	}
	return b, nil
}

// Sign signs with the device key and checks the signature before it goes out.
func (c *Chip) Sign(_ context.Context, digest [32]byte) ([]byte, error) {
	raw, err := c.lib.SignDigest(digest, c.slot)
	if err != nil {
		return nil, failed(err)
	}
	point, err := c.lib.PublicKey(c.slot)
	if err != nil {
		return nil, failed(err)
	}
	if len(raw) != 64 || len(point) != 64 {
		return nil, failed(fmt.Errorf("a signature of %d and a key of %d bytes instead of 64", len(raw), len(point)))
	}
	pub, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), append([]byte{4}, point...))
	if err != nil {
		return nil, failed(err)
	}
	r, s := new(big.Int).SetBytes(raw[:32]), new(big.Int).SetBytes(raw[32:])
	if !ecdsa.Verify(pub, digest[:], r, s) {
		return nil, failed(errors.New("the module's signature does not verify with its own key"))
	}
	return asn1.Marshal(struct{ R, S *big.Int }{r, s})
}

// Forget cannot be done: a locked blob opens as long as the module lives.
func (c *Chip) Forget(context.Context, json.RawMessage) error {
	return unsupported("the module cannot forget one blob; erase the keyslots instead")
}

// Tampers is not served here: zymbitd's server asks Breaches between requests, since the
// library takes one call at a time.
func (c *Chip) Tampers(context.Context) (<-chan hardware.Tamper, error) {
	ch := make(chan hardware.Tamper)
	close(ch)
	return ch, nil
}

// Breaches waits a moment for a perimeter event and returns the channels that were
// breached since the last call. They are reported before they are cleared: an
// event that is told twice is better than one that is told to nobody.
func (c *Chip) Breaches(wait time.Duration, report func(hardware.Tamper)) error {
	hit, err := c.lib.WaitPerimeter(wait)
	if err != nil {
		return failed(err)
	}
	if !hit {
		return nil
	}
	times, err := c.lib.Perimeter()
	if err != nil {
		return failed(err)
	}
	for i, t := range times {
		if t != 0 && i < maxChannels {
			report(hardware.Tamper{Time: c.clock.Now().UTC(), Source: fmt.Sprintf("perimeter-%d", i),
				Detail: "by the module's clock at " + time.Unix(int64(t), 0).UTC().Format(time.RFC3339)})
		}
	}
	if err := c.lib.ClearPerimeter(); err != nil {
		return failed(err)
	}
	return nil
}

// maxChannels is more than any module has.
const maxChannels = 8

// Indicate shows the state on the module's LED, which is also the vendor's own sign of
// being bound: ready gives it back to steady off.
func (c *Chip) Indicate(_ context.Context, s hardware.Indication) error {
	var err error
	switch s {
	case hardware.IndicateOff, hardware.IndicateReady:
		err = c.lib.LEDOff()
	case hardware.IndicateStarting:
		err = c.lib.LEDFlash(500*time.Millisecond, 500*time.Millisecond, 0)
	case hardware.IndicateWarning:
		err = c.lib.LEDFlash(100*time.Millisecond, 900*time.Millisecond, 0)
	case hardware.IndicateAlarm:
		err = c.lib.LEDOn()
	default:
		return failed(fmt.Errorf("indication %q is not known", s))
	}
	if err != nil {
		return failed(err)
	}
	return nil
}

// Close closes the library.
func (c *Chip) Close() error { return c.lib.Close() }

func failed(err error) error  { return &hardware.Error{Reason: hardware.ReasonFailed, Err: err} }
func refused(err error) error { return &hardware.Error{Reason: ReasonRefused, Err: err} }

func printable(s string) string {
	out := make([]byte, 0, min(len(s), 64))
	for i := 0; i < len(s) && len(out) < 64; i++ {
		if s[i] >= ' ' && s[i] <= '~' {
			out = append(out, s[i])
		}
	}
	return string(out)
}
