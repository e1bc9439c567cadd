package pi

import (
	"regexp"
	"strconv"
)

// Stage is one line by which pi-init says how far it has come.
type Stage struct {
	Name    string
	Seconds float64 // since the kernel began
	Rest    string  // key=value words
}

var stageLine = regexp.MustCompile(`portcullis: stage=([a-z0-9-]+) t=([0-9.]+) ?([^\r\n]*)`)

// Stages finds pi-init's stages in console text.
func Stages(text string) []Stage {
	var out []Stage
	for _, m := range stageLine.FindAllStringSubmatch(text, -1) {
		t, err := strconv.ParseFloat(m[2], 64)
		if err == nil {
			out = append(out, Stage{m[1], t, m[3]})
		}
	}
	return out
}
