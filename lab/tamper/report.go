package tamper

import (
	"fmt"
	"slices"
	"strings"
)

// Outcome is what became of an attack.
type Outcome string

// Outcomes.
const (
	Found    Outcome = "found"
	Refused  Outcome = "refused"   // by the PC's kernel
	NotFound Outcome = "not-found" // within the time that was given
	Failed   Outcome = "failed"    // it could not be committed
)

// Result tells what became of an attack.
type Result struct {
	Attack     string  `json:"attack"`
	Round      int     `json:"round"` // from 1
	Outcome    Outcome `json:"outcome"`
	Expected   Outcome `json:"expected"`
	FoundBy    string  `json:"found_by,omitempty"`
	Reason     string  `json:"reason,omitempty"`
	Detail     string  `json:"detail,omitempty"`     // of the finding, or why there is none
	Seconds    float64 `json:"seconds,omitempty"`    // from the attack to the finding
	Challenges int     `json:"challenges,omitempty"` // asked in that time
}

// OK tells whether it went as expected; to find more than that is no failure.
func (r Result) OK() bool {
	return r.Outcome == r.Expected || r.Outcome == Found && r.Expected == NotFound
}

func (a Attack) expected() Outcome {
	switch {
	case a.Unseen != "":
		return NotFound
	case a.Refusal != "":
		return Refused
	}
	return Found
}

// Report is a whole run.
type Report struct {
	Results []Result `json:"results"`
	Answers int      `json:"honest_answers"` // looked at before anything was attacked
	Alarms  []Alarm  `json:"false_alarms"`   // found on the PC before it was attacked
}

// OK tells whether everything went as expected.
func (r Report) OK() bool {
	return len(r.Alarms) == 0 && !slices.ContainsFunc(r.Results, func(x Result) bool { return !x.OK() })
}

// Row are the figures of one attack over all rounds, or of all attacks.
type Row struct {
	Attack           string   `json:"attack"`
	Outcome          Outcome  `json:"outcome"`
	Times            int      `json:"times"` // committed
	FoundBy          string   `json:"found_by,omitempty"`
	Reason           string   `json:"reason,omitempty"`
	Detail           string   `json:"detail,omitempty"`
	MedianSeconds    float64  `json:"median_seconds"`
	P99Seconds       float64  `json:"p99_seconds"`
	MedianChallenges float64  `json:"median_challenges"`
	P99Challenges    float64  `json:"p99_challenges"`
	Unexpected       []string `json:"unexpected,omitempty"`
}

// Rows sums the results up, attack by attack in the order of the table, and all
// that were found at the end.
func (r Report) Rows() []Row {
	var out []Row
	var allSeconds, allChallenges []float64
	for _, a := range Attacks {
		row := Row{Attack: a.Name}
		var seconds, challenges []float64
		for _, x := range r.Results {
			if x.Attack != a.Name {
				continue
			}
			row.Times++
			row.Outcome, row.FoundBy, row.Reason, row.Detail = x.Outcome, x.FoundBy, x.Reason, x.Detail
			if x.Outcome == Found && a.Stage != Played {
				seconds, challenges = append(seconds, x.Seconds), append(challenges, float64(x.Challenges))
			}
			if !x.OK() {
				row.Unexpected = append(row.Unexpected, fmt.Sprintf("round %d: %s, want %s: %s", x.Round, x.Outcome, x.Expected, x.Detail))
			}
		}
		if row.Times == 0 {
			continue
		}
		row.MedianSeconds, row.P99Seconds = quantile(seconds, 0.5), quantile(seconds, 0.99)
		row.MedianChallenges, row.P99Challenges = quantile(challenges, 0.5), quantile(challenges, 0.99)
		allSeconds, allChallenges = append(allSeconds, seconds...), append(allChallenges, challenges...)
		out = append(out, row)
	}
	return append(out, Row{Attack: "all that were found", Outcome: Found, Times: len(allSeconds),
		MedianSeconds: quantile(allSeconds, 0.5), P99Seconds: quantile(allSeconds, 0.99),
		MedianChallenges: quantile(allChallenges, 0.5), P99Challenges: quantile(allChallenges, 0.99)})
}

// quantile is the smallest value that at least q of all are not above, 0 of none.
func quantile(v []float64, q float64) float64 {
	if len(v) == 0 {
		return 0
	}
	v = slices.Sorted(slices.Values(v))
	n := int(q * float64(len(v)))
	if float64(n) < q*float64(len(v)) {
		n++
	}
	return v[max(n-1, 0)]
}

// Table writes the rows for a person.
func (r Report) Table() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%-30s %-9s %5s  %-16s %9s %9s %6s %6s\n", "attack", "outcome", "times", "found by", "s median", "s p99", "asked", "p99")
	for _, row := range r.Rows() {
		fmt.Fprintf(&b, "%-30s %-9s %5d  %-16s", row.Attack, row.Outcome, row.Times, row.FoundBy)
		if row.MedianChallenges > 0 {
			fmt.Fprintf(&b, " %9.1f %9.1f %6.0f %6.0f", row.MedianSeconds, row.P99Seconds, row.MedianChallenges, row.P99Challenges)
		}
		b.WriteByte('\n')
		if row.Outcome != Found {
			fmt.Fprintf(&b, "    %s\n", row.Detail)
		}
		for _, u := range row.Unexpected {
			fmt.Fprintf(&b, "    UNEXPECTED %s\n", u)
		}
	}
	fmt.Fprintf(&b, "false alarms before the attacks: %d in %d answers\n", len(r.Alarms), r.Answers)
	for _, a := range r.Alarms {
		fmt.Fprintf(&b, "    %s %s: %s\n", a.Probe, a.Reason, a.Detail)
	}
	return b.String()
}
