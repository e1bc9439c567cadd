package piscenario

import (
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"portcullis/images/card"
	"portcullis/lab/medium"
	"portcullis/lab/pi"
)

// firstBoot is a part of a first boot: cuts in it begin with a Pi that was suspended
// where it begins.
type firstBoot struct {
	from  string   // line after which it was suspended; "" = with power-on
	lines []string // after which it is cut
	// How many writes there are, as counted; to the card that many are drawn.
	headers, configuration, card int
	span                         time.Duration // drawn from its beginning, instead of lines
}

var firstBoots = []firstBoot{
	{"", []string{`stage=init `, `stage=card `, `stage=chip `, `stage=enrol-operator `}, 0, 0, 0, 0},
	{`stage=enrol-operator `, []string{`stage=enrol-grow `, `stage=enrol-format `, `stage=enrol-copy `}, 8, 1, 60, 0},
	{`stage=enrol-copy `, []string{`stage=enrol-verify `, `stage=enrol-seal `, `stage=cap `, `stage=enrol-data `, `recovery key \(write`,
		`stage=enrol-recovery `, `stage=enrol-commit `, `stage=data `, `stage=switch-root `}, 3, 2, 60, 0},
	{switchRoot, nil, 0, 0, 0, 25 * time.Second},
}

// switchRoot is where the services begin; the gateway's key is born after it.
const switchRoot = `stage=switch-root `

// weights say how often each part is drawn.
var weights = []int{2, 5, 10, 2}

// draw takes a moment; lines that were on the console before are none.
func (f firstBoot) draw(r *rand.Rand, console string) moment {
	if f.span > 0 {
		return moment{after: time.Duration(r.Int64N(int64(f.span)))}
	}
	lines := slices.DeleteFunc(slices.Clone(f.lines), func(l string) bool { return regexp.MustCompile(l).MatchString(console) })
	line := lines[r.IntN(len(lines))]
	switch how := r.IntN(6); {
	case how == 0 && f.headers > 0:
		return moment{region: "headers", writes: r.IntN(f.headers + 1)}
	case how == 1 && f.configuration > 0:
		return moment{region: "configuration", writes: r.IntN(f.configuration + 1)}
	case how == 2 && f.card > 0:
		return moment{line: line, region: "card", writes: r.IntN(f.card)}
	}
	return soon(r, line)
}

// TestPowerCutFirstBoot: whenever the power fails in the first boot, the next one
// ends in a running Pi whose key the operator holds, and the one after it is opened
// by the chip.
func TestPowerCutFirstBoot(t *testing.T) {
	t.Parallel()
	operator := operatorKey(t)
	b := beginnings{bigDir(t), map[string]asleep{}}
	cuts(t, func(t *testing.T, r *rand.Rand, _ int) outcome {
		f := firstBoots[weighted(r, weights)]
		p, console := b.resume(t, f.from)
		at := f.draw(r, console)
		where := map[string]medium.Region{"headers": headers(t, p.card), "configuration": part(t, p.card, card.PartConf), "card": {To: 1 << 62}}[at.region]
		end := switchRoot
		if at.region == "card" {
			end = ""
		}
		at.wait(t, p, where, end)
		o := outcome{moment: at.String(), loss: p.cut(t, r), class: lastStage(console + p.Console().Text())}
		finished := enrolled(t, p.card)
		text := recovers(t, p.card, "", map[bool]string{true: servicesUp, false: switchRoot}[f.from == switchRoot])
		keyIsSafe(t, p.card, operator)
		anew := strings.Contains(text, "stage=enrol-commit ")
		switch {
		case finished && anew:
			t.Fatal("a volume that was finished was made anew: what was on it is lost")
		case finished:
			o.after = "opened by the chip"
			if !strings.Contains(text, " by=tpm2") {
				t.Fatalf("not opened by the chip:\n%s", text)
			}
		default:
			o.after = "enrolled by the next boot"
			recovers(t, p.card, "tpm2", switchRoot)
		}
		return o
	})
}

func weighted(r *rand.Rand, weights []int) int {
	sum := 0
	for _, w := range weights {
		sum += w
	}
	n := r.IntN(sum)
	for i, w := range weights {
		if n -= w; n < 0 {
			return i
		}
	}
	panic("unreachable")
}

// beginnings are suspended first boots, by the line after which they were; they are
// made when they are needed.
type beginnings struct {
	dir  string // outlives the cuts
	made map[string]asleep
}

// resume returns a Pi in a first boot and what it has written before.
func (b beginnings) resume(t *testing.T, from string) (*powered, string) {
	t.Helper()
	if from == "" {
		return power(t, fresh(t, variant)), ""
	}
	a, ok := b.made[from]
	if !ok {
		c := shared(t, fresh(t, variant), b.dir)
		m := boot(t, c, withOneCPU)
		expect(t, m, from)
		a = suspend(t, m, c)
		b.made[from] = a
	}
	return a.resume(t), a.console
}

// lastStage is how far pi-init has come.
func lastStage(console string) string {
	all := pi.Stages(console)
	if len(all) == 0 {
		return "before the first stage"
	}
	return "after " + all[len(all)-1].Name
}
