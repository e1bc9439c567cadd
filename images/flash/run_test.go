package flash

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"portcullis/images/blockmap"
	"portcullis/images/card"
	"portcullis/images/flash/flashtest"
	"portcullis/images/gpt"
	"portcullis/images/manifest"
)

const mib = 1 << 20

// medium is a card in memory that was used before, with room for what its fault needs.
type medium struct {
	b      []byte
	writes []int64 // offsets, in order
	reads  map[int64]int
	// before is asked before each write; its error is the write's.
	before func(off int64, n int) error
	// fault changes what a write does; nil writes.
	fault func(b []byte, off int64)
	syncs int
}

func used(size int) *medium {
	return &medium{b: bytes.Repeat([]byte{0xA5}, size), reads: map[int64]int{}}
}

func (m *medium) Size() int64 { return int64(len(m.b)) }
func (m *medium) Sync() error { m.syncs++; return nil }

func (m *medium) WriteAt(b []byte, off int64) (int, error) {
	if m.before != nil {
		if err := m.before(off, len(b)); err != nil {
			return 0, err
		}
	}
	if off%512 != 0 || len(b)%512 != 0 || off+int64(len(b)) > m.Size() {
		return 0, fmt.Errorf("%d bytes at %d", len(b), off)
	}
	m.writes = append(m.writes, off)
	if m.fault != nil {
		m.fault(b, off)
		return len(b), nil
	}
	return copy(m.b[off:], b), nil
}

func (m *medium) ReadBack(b []byte, off int64) error {
	if off%512 != 0 || len(b)%512 != 0 || off+int64(len(b)) > m.Size() {
		return fmt.Errorf("%d bytes at %d", len(b), off)
	}
	m.reads[off]++
	copy(b, m.b[off:])
	return nil
}

func (m *medium) ReadAt(b []byte, off int64) (int, error) { return copy(b, m.b[off:]), nil }

func load(t testing.TB, i *flashtest.Image) *Image {
	t.Helper()
	img, err := OpenImage(i.Path, nil)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func seedText(t testing.TB) []byte {
	t.Helper()
	b, err := card.SeedImage("seed.yml", []byte("schema: portcullis/seed/v1\nhostname: door\nuplink: dhcp\n"))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// holds compares a card with its image and settings.
func holds(t testing.TB, m *medium, i *flashtest.Image, seed []byte) {
	t.Helper()
	want := bytes.Clone(i.Raw)
	if seed != nil {
		at, err := SeedOffset(bytes.NewReader(i.Raw), int64(len(i.Raw)))
		if err != nil {
			t.Fatal(err)
		}
		copy(want[at:], seed)
	}
	if got := m.b[:len(want)]; !bytes.Equal(got, want) {
		for k := range got {
			if got[k] != want[k] {
				t.Fatalf("the card differs from the image, first at %d", k)
			}
		}
	}
	tail := len(m.b) - mib
	if !blockmap.Zero(m.b[tail:]) {
		t.Error("the last MiB is not zero")
	}
	if rest := m.b[len(want):tail]; len(bytes.Trim(rest, "\xA5")) != 0 {
		t.Error("what lies behind the image was touched")
	}
	table, _, err := gpt.Read(m, uint64(len(m.b)/512))
	if err != nil || len(table.Partitions) != 5 {
		t.Errorf("%v, %v", table, err)
	}
}

func TestCardHoldsTheImageAndTheSettings(t *testing.T) {
	i := flashtest.New(t)
	m := used(100 * mib)
	seed := seedText(t)
	phases := map[string]int64{}
	r, err := Run(t.Context(), Options{Image: load(t, i), Target: m, Seed: seed, Report: func(phase string, done, total int64) {
		if done < phases[phase] || done > total || total != i.Map.Size {
			t.Errorf("%s: %d of %d after %d", phase, done, total, phases[phase])
		}
		phases[phase] = done
	}})
	if err != nil {
		t.Fatal(err)
	}
	holds(t, m, i, seed)
	if phases[PhaseWrite] != i.Map.Size || phases[PhaseVerify] != i.Map.Size {
		t.Errorf("progress ended at %v of %d", phases, i.Map.Size)
	}
	if r.Written != i.Map.Data() || r.Kept != 0 || r.Zeroed == 0 || !r.Seeded || r.Verified < i.Map.Size {
		t.Errorf("%+v", r)
	}
	for _, w := range m.writes {
		if w > i.Map.Size && w < int64(len(m.b))-mib {
			t.Errorf("write at %d, behind the image", w)
		}
	}
}

func TestGapsThatAreZeroAlreadyAreNotWritten(t *testing.T) {
	i := flashtest.New(t)
	m := used(100 * mib)
	clear(m.b)
	r, err := Run(t.Context(), Options{Image: load(t, i), Target: m})
	if err != nil || r.Zeroed != 0 {
		t.Errorf("%+v, %v", r, err)
	}
	gaps := i.Map.Gaps()
	for _, w := range m.writes {
		for _, g := range gaps {
			if w >= g.Start && w < g.Start+g.Length {
				t.Errorf("zeros are written at %d", w)
			}
		}
	}
}

// Whenever a run ends early, the card is none: nothing boots from half an image.
func TestInterruptedRunLeavesNoCard(t *testing.T) {
	i := flashtest.New(t)
	img := load(t, i)
	whole := used(100 * mib)
	old := flashtest.Layout()
	prepare := func(m *medium) {
		if err := old.Write(writerAt{m}); err != nil {
			t.Fatal(err)
		}
		m.writes = nil
	}
	prepare(whole)
	if _, err := Run(t.Context(), Options{Image: img, Target: whole}); err != nil {
		t.Fatal(err)
	}
	total := len(whole.writes)
	for cut := 1; cut < total; cut++ {
		m := used(100 * mib)
		prepare(m)
		left := cut
		m.before = func(int64, int) error {
			if left--; left < 0 {
				return io.ErrClosedPipe
			}
			return nil
		}
		if _, err := Run(t.Context(), Options{Image: img, Target: m}); Reason(err) != ReasonIO {
			t.Fatalf("cut at write %d of %d: %v", cut, total, err)
		}
		if _, _, err := gpt.Read(m, 100*mib/card.SectorSize); err == nil {
			t.Fatalf("cut at write %d of %d: the card has a partition table", cut, total)
		}
	}
}

// writerAt keeps the medium's other methods from Write.
type writerAt struct{ m *medium }

func (w writerAt) WriteAt(b []byte, off int64) (int, error) { return w.m.WriteAt(b, off) }

func journal(t testing.TB, dir string, img *Image) *Journal {
	t.Helper()
	j, err := OpenJournal(dir, img.Digest, "a card")
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func TestResumeReadsBackAndDoesNotWriteAgain(t *testing.T) {
	i := flashtest.New(t)
	img := load(t, i)
	dir := t.TempDir()
	m := used(100 * mib)
	left := 9
	m.before = func(int64, int) error {
		if left--; left < 0 {
			return io.ErrClosedPipe
		}
		return nil
	}
	if _, err := Run(t.Context(), Options{Image: img, Target: m, Journal: journal(t, dir, img)}); Reason(err) != ReasonIO {
		t.Fatal(err)
	}
	m.before = nil
	j := journal(t, dir, img)
	if j.Len() < 3 {
		t.Fatalf("%d ranges were noted", j.Len())
	}
	// One of them was lost since: it is found out and written again.
	var noted []int
	for n := range j.done {
		noted = append(noted, n)
	}
	slices.Sort(noted)
	lost := i.Map.Ranges[noted[1]]
	m.b[lost.Start+77] ^= 1
	m.writes, m.reads = nil, map[int64]int{}
	r, err := Run(t.Context(), Options{Image: img, Target: m, Journal: j})
	if err != nil {
		t.Fatal(err)
	}
	holds(t, m, i, nil)
	var kept int64
	for _, n := range noted {
		at := i.Map.Ranges[n].Start
		again := slices.Contains(m.writes, at)
		if again != (at == lost.Start) || m.reads[at] < 2 {
			t.Errorf("range at %d: written again %v, read %d times", at, again, m.reads[at])
		}
		if !again {
			kept += i.Map.Ranges[n].Length
		}
	}
	if r.Kept != kept || r.Kept+r.Written != i.Map.Data() {
		t.Errorf("%+v, kept should be %d", r, kept)
	}
	if files, err := os.ReadDir(dir); err != nil || len(files) != 0 {
		t.Errorf("the journal is still there: %v, %v", files, err)
	}
}

func TestJournalOfAnotherImageOrDeviceIsNotUsed(t *testing.T) {
	dir := t.TempDir()
	open := func(image byte, device string) *Journal {
		j, err := OpenJournal(dir, blockmap.Digest{image}, device)
		if err != nil {
			t.Fatal(err)
		}
		return j
	}
	j := open(1, "a")
	for n := range 3 {
		if err := j.add(n); err != nil {
			t.Fatal(err)
		}
	}
	j.Close()
	if open(1, "a").Len() != 3 || open(2, "a").Len() != 0 || open(1, "b").Len() != 0 {
		t.Error("journals are mixed up")
	}
	for content, want := range map[string]int{
		"":                                     0,
		"garbage":                              0,
		journalHeader + "1\n2\n":               2,
		journalHeader + "1\n2":                 1, // cut off in the middle of a line
		journalHeader + "1\n-2\n":              0,
		journalHeader + "1\nx\n":               0,
		journalHeader + "999999999\n":          0,
		strings.Repeat("1\n", 600_000):         0,
		"portcullis/flash/v2\n" + "1\n2\n3\n4": 0,
	} {
		if err := os.WriteFile(j.path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		k := open(1, "a")
		if k.Len() != want {
			t.Errorf("%.40q: %d ranges, want %d", content, k.Len(), want)
		}
		if err := k.add(5); err != nil {
			t.Fatal(err)
		}
		k.Close()
		if again := open(1, "a"); again.Len() != want+1 || !again.has(5) {
			t.Errorf("%.40q: %d ranges after one more", content, again.Len())
		}
	}
}

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

func edit(t *testing.T, path string, change func([]byte) []byte) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, change(b), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestOpenImageAsksForTheSignature(t *testing.T) {
	i := flashtest.New(t)
	key := func(path string) *manifest.Trust {
		k, err := manifest.LoadPublicKey(path)
		if err != nil {
			t.Fatal(err)
		}
		tr := &manifest.Trust{Threshold: 1}
		tr.ReleaseKeys = append(tr.ReleaseKeys, k)
		return tr
	}
	if img, err := OpenImage(i.Path, key(i.Key)); err != nil || !img.Known {
		t.Errorf("%+v, %v", img, err)
	}
	if img, err := OpenImage(i.Path, nil); err != nil || img.Known || len(img.KeyIDs) != 1 {
		t.Errorf("without a key: %+v, %v", img, err)
	}
	if _, err := OpenImage(i.Path, key(flashtest.New(t).Key)); Reason(err) != manifest.ReasonSignature {
		t.Errorf("with another key: %v", err)
	}
	if _, err := OpenImage(strings.TrimSuffix(i.Path, ".zst"), nil); err == nil {
		t.Error("a name without a map is accepted")
	}
	if err := os.Remove(filepath.Join(filepath.Dir(i.Path), "pi"+MapSuffix)); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenImage(i.Path, nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without a map: %v", err)
	}
}

func TestFailuresOfTheDeviceAreReported(t *testing.T) {
	i := flashtest.New(t)
	img := load(t, i)
	if _, err := Run(t.Context(), Options{Image: img, Target: used(50 * mib)}); Reason(err) != ReasonTooSmall {
		t.Errorf("a device smaller than the image: %v", err)
	}
	if _, err := Run(t.Context(), Options{Image: img, Target: used(100 * mib), Seed: []byte("short")}); Reason(err) != ReasonSettings {
		t.Errorf("settings of a wrong size: %v", err)
	}
	if _, err := Run(t.Context(), Options{Image: img, Target: deaf{used(100 * mib)}}); Reason(err) != ReasonIO {
		t.Errorf("a device that cannot be read: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	m := used(100 * mib)
	m.before = func(off int64, _ int) error {
		if off > 30*mib {
			cancel()
		}
		return nil
	}
	if _, err := Run(ctx, Options{Image: img, Target: m}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	// An image whose PCCONF has no settings' file of the right size.
	noConf := bytes.Clone(i.Raw)
	clear(noConf[mib : 2*mib])
	other := flashtest.Pack(t, noConf)
	if _, err := Run(t.Context(), Options{Image: load(t, other), Target: used(100 * mib), Seed: seedText(t)}); Reason(err) != ReasonSettings {
		t.Errorf("no place for the settings: %v", err)
	}
}

type deaf struct{ *medium }

func (deaf) ReadBack([]byte, int64) error { return io.ErrUnexpectedEOF }
