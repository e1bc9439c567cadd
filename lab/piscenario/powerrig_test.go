package piscenario

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"portcullis/hardware/escrow"
	"portcullis/images/card"
	"portcullis/images/luks2"
	"portcullis/lab/medium"
	"portcullis/lab/pi"
)

// How often the power is cut in each of the tests of power cuts, and where: the
// numbers come from the seed, which a test that fails names.
const (
	envCuts     = "PORTCULLIS_POWERCUTS" // a number; without it shortCuts
	envCutSeed  = "PORTCULLIS_POWERCUT_SEED"
	shortCuts   = 3
	defaultSeed = 1
)

func number(t *testing.T, name string, otherwise uint64) uint64 {
	t.Helper()
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

// cuts runs one subtest for each cut. Its random numbers depend on the seed and on
// the cut's own number alone, so that a cut can be repeated by itself (go test -run).
func cuts(t *testing.T, one func(t *testing.T, r *rand.Rand, i int) outcome) {
	t.Helper()
	n, seed := int(number(t, envCuts, shortCuts)), number(t, envCutSeed, defaultSeed)
	t.Logf("%s=%d", envCutSeed, seed)
	var all []outcome
	for i := range n {
		t.Run(fmt.Sprintf("%03d", i+1), func(t *testing.T) {
			began := time.Now()
			o := one(t, rand.New(rand.NewPCG(seed, uint64(len(t.Name()))<<32|uint64(i))), i)
			all = append(all, o)
			t.Logf("cut: test=%s seed=%d moment=%q %s seconds=%.0f", t.Name(), seed, o.moment, o, time.Since(began).Seconds())
		})
	}
	summary(t, n, all)
}

// outcome is what became of one cut; it exists only where nothing was wrong.
type outcome struct {
	moment string
	class  string // what the summary counts by
	loss   medium.Loss
	after  string // what the next boot made of it
}

func (o outcome) String() string {
	return fmt.Sprintf("class=%q loss=%q after=%q", o.class, o.loss, o.after)
}

// summary tells where the cuts fell and what came of them.
func summary(t *testing.T, n int, all []outcome) {
	t.Helper()
	count := map[string]int{}
	var lossy, lost, torn int
	for _, o := range all {
		count[o.class+": "+o.after]++
		if o.loss.Lost+o.loss.Torn > 0 {
			lossy++
		}
		lost, torn = lost+o.loss.Lost, torn+o.loss.Torn
	}
	lines := make([]string, 0, len(count))
	for what, n := range count {
		lines = append(lines, fmt.Sprintf("%4d %s", n, what))
	}
	slices.SortFunc(lines, func(a, b string) int { return strings.Compare(a[5:], b[5:]) })
	t.Logf("summary: %s: %d of %d cuts end in a booting Pi with its key; %d of them lost writes (%d whole, %d torn)\n%s",
		t.Name(), len(all), n, lossy, lost, torn, strings.Join(lines, "\n"))
}

// powered is a Pi whose card loses what was not flushed when the power fails.
type powered struct {
	*pi.Machine
	disk *medium.Disk
	card pi.Card
}

// withOneCPU leaves a processor to the other test of power cuts: two machines with
// one each do more in a second than one with two.
func withOneCPU(c *pi.Config) { c.CPUs = 1 }

// power switches a Pi on.
func power(t *testing.T, c pi.Card, change ...func(*pi.Config)) *powered {
	t.Helper()
	dir, err := os.MkdirTemp("", "card-")
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "nbd.sock")
	d, err := medium.Serve(c.Image, socket)
	if err != nil {
		t.Fatal(err)
	}
	// After the machine has gone: its clean-up is registered later, and runs before.
	t.Cleanup(func() { d.Close(); os.RemoveAll(dir) })
	return &powered{boot(t, c, append(change, withOneCPU, func(cfg *pi.Config) { cfg.Medium = socket })...), d, c}
}

// cut takes the power away, from the card first.
func (p *powered) cut(t *testing.T, r *rand.Rand) medium.Loss {
	t.Helper()
	loss, err := p.disk.Cut(r)
	p.Kill()
	if err := p.disk.Close(); err != nil {
		t.Fatal(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return loss
}

// asleep is a running Pi that was suspended: cuts begin there instead of with a boot.
type asleep struct {
	card    pi.Card
	state   string
	console string // what it had written before
	change  []func(*pi.Config)
}

// suspend ends a machine; change is what it was booted with.
func suspend(t *testing.T, m *pi.Machine, c pi.Card, change ...func(*pi.Config)) asleep {
	t.Helper()
	a := asleep{card: c, state: filepath.Join(filepath.Dir(c.Image), "machine"), change: slices.Clip(change)}
	ctx, cancel := context.WithTimeout(t.Context(), bootLimit)
	defer cancel()
	if err := m.Suspend(ctx, a.state); err != nil {
		t.Fatal(err)
	}
	a.console = m.Console().Text()
	return a
}

// resume lets a copy of the machine go on.
func (a asleep) resume(t *testing.T) *powered {
	t.Helper()
	return power(t, cardOf(t, a.card), append(a.change, func(c *pi.Config) { c.Resume = a.state })...)
}

// shared is a copy of a card in a directory of its own below dir, which outlives t.
func shared(t *testing.T, c pi.Card, dir string) pi.Card {
	t.Helper()
	dir, err := os.MkdirTemp(dir, "shared-")
	if err != nil {
		t.Fatal(err)
	}
	c, err = c.Copy(dir)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// part is where a partition lies on a card.
func part(t *testing.T, c pi.Card, number int) medium.Region {
	t.Helper()
	at, n := partition(t, c, number)
	return medium.Region{From: at, To: at + n}
}

// headers is where the LUKS2 headers and keyslots lie on a card.
func headers(t *testing.T, c pi.Card) medium.Region {
	t.Helper()
	at, _ := partition(t, c, card.PartCrypt)
	return medium.Region{From: at, To: at + card.CryptHeader}
}

// moment is a place to cut: some time after a line on the console, or at the first
// write or flush after so many writes into a region. Lines make it reach every step
// however fast the machine is; the time reaches the middle of steps, the
// writes what lies between two of them.
type moment struct {
	line   string // "" = from the beginning
	after  time.Duration
	region string // "" = by time
	writes int
}

func (at moment) String() string {
	from := strings.Trim(at.line, " ")
	if from == "" {
		from = "from the start"
	}
	if at.region != "" {
		return fmt.Sprintf("%s, after %d writes to %s", from, at.writes, at.region)
	}
	return fmt.Sprintf("%s, after %s", from, at.after.Round(time.Millisecond))
}

// soon is a time after a line: half of them are very short.
func soon(r *rand.Rand, line string) moment {
	longest := 100 * time.Millisecond
	if r.IntN(2) == 0 {
		longest = 3 * time.Second
	}
	return moment{line: line, after: time.Duration(r.Int64N(int64(longest)))}
}

// patience bounds the wait for a machine that may have nothing more to write.
const patience = 15 * time.Second

// wait returns at the moment. Where the machine does not write so often, that is when
// it says end, or where end is "" when it has not done so for a while.
func (at moment) wait(t *testing.T, p *powered, where medium.Region, end string) {
	t.Helper()
	t.Logf("moment: %s", at)
	if at.line != "" {
		expect(t, p.Machine, at.line)
	}
	limit := at.after
	if at.region != "" {
		p.disk.CutAfter(at.writes, where)
		limit = patience
	}
	ctx, cancel := context.WithTimeout(t.Context(), bootLimit)
	defer cancel()
	said := make(chan error, 1)
	if at.region != "" && end != "" {
		limit = bootLimit
		go func() {
			_, err := p.Expect(ctx, end)
			said <- err
		}()
	}
	select {
	case <-p.disk.Fired():
		return
	case <-time.After(limit):
	case err := <-said:
		if err != nil {
			t.Fatal(err)
		}
	case <-p.Done():
		t.Fatalf("the machine ended by itself: %v", p.Err())
	}
	if at.region != "" {
		t.Logf("there were fewer than %d writes to %s", at.writes, at.region)
	}
}

// recovers boots the card once more until the line end and wants the volume open and
// the system started; it returns what the console said. Nothing may have failed on the
// way.
func recovers(t *testing.T, c pi.Card, by, end string) string {
	t.Helper()
	m := boot(t, c, withOneCPU)
	expect(t, m, end)
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

// operatorKey is the operator's private half.
func operatorKey(t *testing.T) *escrow.Identity {
	t.Helper()
	path, _, err := builder.Operator(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	operator, err := escrow.LoadIdentity(path)
	if err != nil {
		t.Fatal(err)
	}
	return operator
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
