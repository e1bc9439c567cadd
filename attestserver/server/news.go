package server

import (
	"strings"

	"portcullis/attestserver/challenge"
	"portcullis/attestserver/protocol"
)

// notes is what each op's answers note without failing anything: a listener that
// stays, a container that runs. It is told with every answer, and written into
// the log when it changes.
type notes struct {
	state *protocol.ImageState // of the boot session
	by    map[string]string    // op → its notes
}

// fresh tells whether findings that fail nothing say something else than the
// answers before them did about the ops that were asked.
func (n *notes) fresh(state *protocol.ImageState, asked []challenge.Answer, findings []protocol.Finding) bool {
	if n.state != state {
		n.state, n.by = state, make(map[string]string)
	}
	now := make(map[string]string, len(asked))
	for _, a := range asked {
		now[a.Name()] = ""
	}
	changed := false
	for _, f := range findings {
		if _, ok := now[f.Probe]; !ok {
			changed = true // of the answer as a whole: each is news
			continue
		}
		now[f.Probe] += strings.Join([]string{f.Reason, f.Class.String(), f.Detail}, "\x00") + "\n"
	}
	for op, text := range now {
		changed = changed || n.by[op] != text
		n.by[op] = text
	}
	return changed && len(findings) > 0
}
