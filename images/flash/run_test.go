package flash

import (
	"bytes"
	"context"
	"errors"
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

func FuzzJournal(f *testing.F) {
	f.Add([]byte(journalHeader + "1\n22\n"))
	f.Add([]byte(journalHeader + "1\n2"))
	f.Add([]byte("garbage"))
	f.Fuzz(func(t *testing.T, b []byte) {
		j := Journal{done: map[int]bool{}}
		j.parse(b)
		for n := range j.done {
			if n < 0 || n >= journalEntries {
				t.Errorf("range %d", n)
			}
		}
	})
}
