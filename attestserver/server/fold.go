package server

import (
	"fmt"
	"math/rand/v2"
	"slices"

	"portcullis/attestserver/protocol"
)

// maxFindings bounds what one answer can put into the record. Every op bounds its own.
const maxFindings = 64

// fold makes at most maxFindings of the findings of one answer. No op can crowd out
// another's: they take turns, each beginning with its worst, and those of one class by
// chance, so that what is left out now shows in a later answer. The last finding
// stands for the rest, in the class of the worst of them.
func fold(findings []protocol.Finding) []protocol.Finding {
	if len(findings) <= maxFindings {
		return findings
	}
	rand.Shuffle(len(findings), func(i, k int) { findings[i], findings[k] = findings[k], findings[i] })
	slices.SortStableFunc(findings, func(a, b protocol.Finding) int { return int(b.Class) - int(a.Class) })
	var probes []string
	of := map[string][]protocol.Finding{}
	for _, f := range findings {
		if of[f.Probe] == nil {
			probes = append(probes, f.Probe)
		}
		of[f.Probe] = append(of[f.Probe], f)
	}
	out := make([]protocol.Finding, 0, len(findings))
	for turn := 0; len(out) < len(findings); turn++ {
		for _, p := range probes {
			if turn < len(of[p]) {
				out = append(out, of[p][turn])
			}
		}
	}
	rest := out[maxFindings-1:]
	worst := slices.MaxFunc(rest, func(a, b protocol.Finding) int { return int(a.Class) - int(b.Class) })
	return append(out[:maxFindings-1], finding(worst.Probe, protocol.FindingsMore, worst.Class, fmt.Sprintf("%d more findings than are listed", len(rest))))
}
