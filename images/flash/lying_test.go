package flash

import (
	"bytes"
	"os"
	"testing"

	"portcullis/images/blockmap"
	"portcullis/images/flash/flashtest"
)

// A card with less memory than it says takes every write.
func TestLyingDevicesAreFoundOut(t *testing.T) {
	i := flashtest.New(t)
	gap := i.Map.Gaps()[len(i.Map.Gaps())-1]
	for name, c := range map[string]struct {
		fault  func(m *medium) func(b []byte, off int64)
		reason string
	}{
		"wraps round at 40 MiB": {func(m *medium) func([]byte, int64) {
			return func(b []byte, off int64) {
				for k := range b {
					m.b[(off+int64(k))%(40*mib)] = b[k]
				}
				for k := 40 * mib; k < len(m.b); k++ {
					m.b[k] = m.b[k%(40*mib)]
				}
			}
		}, ReasonVerify},
		"loses what is behind 80 MiB": {func(m *medium) func([]byte, int64) {
			return func(b []byte, off int64) {
				if off < 80*mib {
					copy(m.b[off:], b)
				}
			}
		}, ReasonLies},
		"flips a bit": {func(m *medium) func([]byte, int64) {
			return func(b []byte, off int64) {
				copy(m.b[off:], b)
				m.b[50*mib+12345] ^= 4
			}
		}, ReasonVerify},
		"keeps an old sector where zeros belong": {func(m *medium) func([]byte, int64) {
			return func(b []byte, off int64) {
				copy(m.b[off:], b)
				m.b[gap.Start+4096] = 0xA5
			}
		}, ReasonVerify},
		"does not take the partition table": {func(m *medium) func([]byte, int64) {
			return func(b []byte, off int64) {
				if off == 0 && !blockmap.Zero(b) {
					b = b[:4096]
				}
				copy(m.b[off:], b)
			}
		}, ReasonVerify},
		"does not take the settings": {func(m *medium) func([]byte, int64) {
			return func(b []byte, off int64) {
				if !bytes.Contains(b, []byte("hostname: door")) {
					copy(m.b[off:], b)
				}
			}
		}, ReasonVerify},
	} {
		t.Run(name, func(t *testing.T) {
			m := used(100 * mib)
			m.fault = c.fault(m)
			img := load(t, i)
			dir := t.TempDir()
			_, err := Run(t.Context(), Options{Image: img, Target: m, Journal: journal(t, dir, img), Seed: seedText(t)})
			if Reason(err) != c.reason {
				t.Errorf("%v", err)
			}
			if journal(t, dir, img).Len() != 0 {
				t.Error("what such a device took is still believed")
			}
		})
	}
}

func TestImageThatDiffersFromItsMapReachesNoDevice(t *testing.T) {
	for name, c := range map[string]struct {
		change func(t *testing.T, i *flashtest.Image)
		clean  bool // nothing at all may have been written
	}{
		"one byte less": {func(t *testing.T, i *flashtest.Image) { edit(t, i.Path, func(b []byte) []byte { return b[:len(b)-1] }) }, true},
		"one byte more": {func(t *testing.T, i *flashtest.Image) { edit(t, i.Path, func(b []byte) []byte { return append(b, 0) }) }, true},
		"a byte changed": {func(t *testing.T, i *flashtest.Image) {
			edit(t, i.Path, func(b []byte) []byte { b[len(b)/2] ^= 1; return b })
		}, false},
		"another image of the same size": {func(t *testing.T, i *flashtest.Image) {
			raw := bytes.Clone(i.Raw)
			raw[40*mib] ^= 1 // noise that does not compress: the same length
			other := flashtest.Pack(t, raw)
			b, err := os.ReadFile(other.Path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(i.Path, b, 0o644); err != nil {
				t.Fatal(err)
			}
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			i := flashtest.New(t)
			img := load(t, i)
			c.change(t, i)
			m := used(100 * mib)
			if _, err := Run(t.Context(), Options{Image: img, Target: m}); Reason(err) != blockmap.ReasonDiffers {
				t.Fatal(err)
			}
			if c.clean && len(m.writes) > 1 { // the first MiB is made zero before anything
				t.Errorf("writes at %v", m.writes)
			}
			for k, b := range m.b {
				if b != 0xA5 && b != 0 && b != i.Raw[k] {
					t.Fatalf("byte %d is neither old nor of the signed image", k)
				}
			}
		})
	}
}
