package piscenario

import (
	"math/rand/v2"
	"strings"
	"testing"

	"portcullis/images/card"
	"portcullis/lab/medium"
	"portcullis/lab/pi"
)

// stagesOfFirstBoot are the lines after which a first boot is cut.
var stagesOfFirstBoot = []string{
	`stage=init `, `stage=card `, `stage=chip `, `stage=enrol-operator `, `stage=enrol-grow `, `stage=enrol-format `, `stage=enrol-copy `,
	`stage=enrol-verify `, `stage=enrol-seal `, `stage=cap `, `stage=enrol-data `, `recovery key \(write`, `stage=enrol-recovery `, `stage=enrol-commit `,
	`stage=data `, `stage=switch-root `, `identity gateway=`,
}

// Writes of a first boot, as its dry run counted them: no more than these are drawn.
const (
	firstBootHeaderWrites = 40
	firstBootConfWrites   = 6
	firstBootWrites       = 60 // to anywhere, after a line
)

// momentOfFirstBoot draws one.
func momentOfFirstBoot(r *rand.Rand) moment {
	line := stagesOfFirstBoot[r.IntN(len(stagesOfFirstBoot))]
	switch r.IntN(6) {
	case 0:
		return moment{region: "headers", writes: r.IntN(firstBootHeaderWrites)}
	case 1:
		return moment{region: "configuration", writes: 1 + r.IntN(firstBootConfWrites)}
	case 2:
		return moment{line: line, region: "card", writes: r.IntN(firstBootWrites)}
	}
	return soon(r, line)
}

// TestPowerCutFirstBoot: whenever the power fails in the first boot, the next one
// ends in a running Pi whose key the operator holds, and the one after it is opened
// by the chip.
func TestPowerCutFirstBoot(t *testing.T) {
	operator := operatorKey(t)
	cuts(t, func(t *testing.T, r *rand.Rand, _ int) outcome {
		at := momentOfFirstBoot(r)
		c := fresh(t, variant)
		where := map[string]medium.Region{"headers": headers(t, c), "configuration": part(t, c, card.PartConf), "card": {To: 1 << 62}}[at.region]
		p := power(t, c)
		at.wait(t, p, where, `identity gateway=`)
		o := outcome{moment: at.String(), loss: p.cut(t, r), class: lastStage(p.Console().Text())}
		finished := enrolled(t, c)
		text := recovers(t, c, "")
		keyIsSafe(t, c, operator)
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
			recovers(t, c, "tpm2")
		}
		return o
	})
}

// lastStage is how far pi-init has come.
func lastStage(console string) string {
	all := pi.Stages(console)
	if len(all) == 0 {
		return "before the first stage"
	}
	return "after " + all[len(all)-1].Name
}
