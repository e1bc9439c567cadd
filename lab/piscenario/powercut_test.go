package piscenario

import (
	"context"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"portcullis/hardware/escrow"
	"portcullis/images/bundle"
	"portcullis/images/card"
	"portcullis/images/luks2"
	"portcullis/lab/pi"
)

// How often the power is cut in each of the tests below, and where: the numbers
// come from the seed, which a test that fails names.
const (
	envCuts     = "PORTCULLIS_POWERCUTS" // a number; without it shortCuts
	envCutSeed  = "PORTCULLIS_POWERCUT_SEED"
	shortCuts   = 3
	defaultSeed = 1
)

func cuts(t *testing.T) (n int, r *rand.Rand) {
	t.Helper()
	number := func(name string, otherwise uint64) uint64 {
		s := os.Getenv(name)
		if s == "" {
			return otherwise
		}
		v, err := strconv.ParseUint(s, 10, 63)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		return v
	}
	seed := number(envCutSeed, defaultSeed)
	t.Logf("%s=%d", envCutSeed, seed)
	return int(number(envCuts, shortCuts)), rand.New(rand.NewPCG(seed, uint64(len(t.Name()))))
}

// moment is a place to cut: some time after a line on the console. Lines make it
// reach every step however fast the machine is; the time reaches the middle of steps.
type moment struct {
	line  string
	after time.Duration
}

func someMoment(r *rand.Rand, lines []string) moment {
	longest := 100 * time.Millisecond
	if r.IntN(2) == 0 {
		longest = 3 * time.Second
	}
	return moment{lines[r.IntN(len(lines))], time.Duration(r.Int64N(int64(longest)))}
}

// cut waits for the moment and takes the power away.
func (at moment) cut(t *testing.T, m *pi.Machine) {
	t.Helper()
	expect(t, m, at.line)
	select {
	case <-time.After(at.after):
	case <-m.Done():
		t.Fatalf("the machine ended by itself: %v", m.Err())
	}
	m.Kill()
}

// recovers boots the card once more and wants the volume open and the system started;
// it returns what the console said of the slot. Nothing may have failed on the way.
func recovers(t *testing.T, c pi.Card, by string) string {
	t.Helper()
	m := boot(t, c)
	expect(t, m, `portcullis: stage=switch-root`)
	text := m.Console().Text()
	m.Kill()
	if i := strings.Index(text, "portcullis: failed "); i >= 0 {
		t.Fatalf("%s", text[i:])
	}
	if by != "" && !strings.Contains(text, " by="+by) {
		t.Fatalf("not opened by %s:\n%s", by, text)
	}
	return text
}

// keyIsSafe opens the volume on this machine with what the operator alone can read
// on the card.
func keyIsSafe(t *testing.T, c pi.Card, operator *escrow.Identity) {
	t.Helper()
	file, err := escrow.Load(c.Image)
	if err != nil {
		t.Fatal(err)
	}
	rec, err := escrow.Decrypt(operator, file)
	if err != nil {
		t.Fatalf("the escrow on the card: %v", err)
	}
	defer rec.Key.Wipe()
	h, _, s := header(t, c)
	key, _, err := h.Unlock(s, rec.Key.Passphrase())
	if err != nil {
		t.Fatalf("the escrowed key opens nothing: %v", err)
	}
	clear(key)
	if rec.Volume != h.UUID() {
		t.Errorf("the escrow is for volume %s, the card has %s", rec.Volume, h.UUID())
	}
}

// stagesOfFirstBoot are the lines after which a first boot is cut.
var stagesOfFirstBoot = []string{
	`stage=init `, `stage=card `, `stage=chip `, `stage=enrol-operator `, `stage=enrol-grow `, `stage=enrol-format `, `stage=enrol-copy `,
	`stage=enrol-verify `, `stage=enrol-seal `, `stage=cap `, `stage=enrol-data `, `recovery key \(write`, `stage=enrol-recovery `, `stage=enrol-commit `,
	`stage=data `, `stage=switch-root `, `identity gateway=`,
}

// TestPowerCutFirstBoot: whenever the power fails in the first boot, the next one
// ends in a running Pi whose key the operator holds, and the one after it is opened
// by the chip.
func TestPowerCutFirstBoot(t *testing.T) {
	path, _, err := builder.Operator(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	operator, err := escrow.LoadIdentity(path)
	if err != nil {
		t.Fatal(err)
	}
	n, r := cuts(t)
	for i := range n {
		at := someMoment(r, stagesOfFirstBoot)
		c := fresh(t, variant)
		at.cut(t, boot(t, c))
		finished := enrolled(t, c)
		text := recovers(t, c, "")
		keyIsSafe(t, c, operator)
		recovers(t, c, "tpm2")
		t.Logf("%3d: cut %s after %q; enrolled before: %t, by the next boot: %t", i+1, at.after.Round(time.Millisecond), at.line,
			finished, strings.Contains(text, "stage=enrol-commit "))
		if finished && strings.Contains(text, "stage=enrol-commit ") {
			t.Error("a volume that was finished was made anew: what was on it is lost")
		}
		discard(t, c)
	}
}

// enrolled says whether the card's volume is one that first boot has finished.
func enrolled(t *testing.T, c pi.Card) bool {
	t.Helper()
	s := section(t, c, card.PartCrypt)
	h, _, err := luks2.Read(s, s.Size())
	if err != nil {
		return false
	}
	for _, token := range h.Tokens() {
		if strings.Contains(string(token.JSON), `"committed"`) {
			return true
		}
	}
	return false
}

// discard frees the disk of a card before the end of the test.
func discard(t *testing.T, c pi.Card) {
	t.Helper()
	if err := os.Truncate(c.Image, 0); err != nil {
		t.Error(err)
	}
}

// stagesOfTrial are the lines after which a trial is cut; the last one comes
// after the commit and the chip's counter.
var stagesOfTrial = []string{
	`stage=init `, `stage=card [^\n]*release=2 `, `stage=chip `, `stage=unlock `, `stage=slot [^\n]*slot=b`, `stage=cap `, `stage=data `, `stage=switch-root `,
	`identity gateway=`, `release 2 in slot b works`,
}

// TestPowerCutUpdate: whenever the power fails while an update is written, on
// trial or being committed, the next boot runs a complete release, opened by the
// chip; and the update can be finished.
func TestPowerCutUpdate(t *testing.T) {
	p := provisioned(t)
	stick := updateStick(t, "UPDATES", map[string]string{"new" + bundle.Extension: image(t, pi.Variant{Sequence: 2}).Bundle})
	staged := cardOf(t, p.Card)
	m := boot(t, staged, withDisk(stick))
	running(t, m)
	mountStick(t, m)
	began := time.Now()
	if r := portcullis(t, m, "update", stickMount+"/new"+bundle.Extension, "--no-reboot"); r.Exit != 0 {
		t.Fatalf("update: %s %s", r.Stderr, r.Error)
	}
	span := time.Since(began)
	powerOff(t, m)
	n, r := cuts(t)
	for i := range n {
		var c pi.Card
		if i%2 == 0 {
			c = cardOf(t, p.Card)
			at := time.Duration(r.Int64N(int64(span)))
			cutWriting(t, c, stick, at)
			t.Logf("%3d: cut %s into the %s of an update", i+1, at.Round(time.Millisecond), span.Round(time.Millisecond))
		} else {
			c = cardOf(t, staged)
			at := someMoment(r, stagesOfTrial)
			at.cut(t, boot(t, c))
			t.Logf("%3d: cut %s after %q", i+1, at.after.Round(time.Millisecond), at.line)
		}
		text := recovers(t, c, "tpm2")
		s, err := confOf(t, c).State()
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("     %s", s)
		if old := strings.Contains(text, "stage=slot t=") && strings.Contains(text, " slot=a trial=no"); old && s.Active.Sequence != 1 {
			t.Errorf("the old release runs; %s", s)
		}
		if i%2 == 1 {
			finishes(t, c, s)
		}
		discard(t, c)
	}
}

// cutWriting boots the old release and cuts the power so long after an update began.
func cutWriting(t *testing.T, c pi.Card, stick string, after time.Duration) {
	t.Helper()
	m := boot(t, c, withDisk(stick))
	running(t, m)
	mountStick(t, m)
	ctx, cancel := context.WithTimeout(t.Context(), bootLimit)
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		m.Exec(ctx, "portcullis", "update", stickMount+"/new"+bundle.Extension, "--no-reboot") // ends with the power
	}()
	time.Sleep(after)
	m.Kill()
	cancel()
	<-done
}

// finishes boots until the release on trial is committed: what was cut costs an
// attempt, nothing more.
func finishes(t *testing.T, c pi.Card, s card.State) {
	t.Helper()
	if s.Active.Sequence == 2 {
		return
	}
	m := boot(t, c)
	if s.Trial != nil && s.Trial.Attempts < card.MaxAttempts {
		expect(t, m, `release 2 in slot b works and is the active one now`)
	} else {
		expect(t, m, `stage=slot [^\n]*slot=a trial=no`)
	}
	m.Kill()
}
